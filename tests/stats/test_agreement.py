"""agreement.py against statsmodels, a published example, direct sums over pairs, and simulations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.inter_rater import cohens_kappa as oracle_cohen
from statsmodels.stats.inter_rater import fleiss_kappa as oracle_fleiss

from rlhfctl.stats import resampling
from rlhfctl.stats.agreement import (
    NONE,
    Agreement,
    PositionBias,
    Ratings,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    percent_agreement,
    position_bias,
    tabulate,
)
from rlhfctl.stats.paired import wilson_ci
from rlhfctl.stats.resampling import Interval, resample_counts

Measure = Callable[..., Agreement]


def of_the_first_two(ratings: Ratings, *, seed: int, samples: int = 10_000) -> Agreement:
    return cohen_kappa(ratings, "a", "b", seed=seed, samples=samples)


CHANCE_CORRECTED = [of_the_first_two, fleiss_kappa, krippendorff_alpha]
ALL = [percent_agreement, *CHANCE_CORRECTED]

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units.
PUBLISHED = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def published() -> Ratings:
    rows = [line.split() for line in PUBLISHED.strip().splitlines()]
    return tabulate(
        [
            {name: None if code == "." else code for name, code in zip("abcd", unit, strict=True)}
            for unit in zip(*rows, strict=True)
        ]
    )


def table(codes: object, categories: int) -> Ratings:
    array = np.asarray(codes, dtype=np.int64)
    return Ratings(array, tuple("abcdefgh"[: array.shape[1]]), tuple(range(categories)))


def drawn(
    seed: int, units: int, *, knows: float, shares: tuple[float, ...] = (0.6, 0.3, 0.1), missing: float = 0.0
) -> Ratings:
    """Draw three annotators who see the truth with probability `knows`, else guess by `shares`: kappa is knows**2."""
    rng = np.random.default_rng([seed, units])
    truth = rng.choice(len(shares), size=(units, 1), p=shares)
    guesses = rng.choice(len(shares), size=(units, 3), p=shares)
    codes = np.where(rng.random((units, 3)) < knows, truth, guesses)
    codes[rng.random(codes.shape) < missing] = NONE
    return table(codes, len(shares))


def given(row: NDArray[np.int64]) -> list[int]:
    return [int(code) for code in row if code != NONE]


# ---------------------------------------------------------------- values


def test_two_annotators_by_hand() -> None:
    # 4 units; they agree on 3. a: x x y y, b: x y y y. Chance: 2/4 1/4 + 2/4 3/4 = 1/2. Kappa (3/4 - 1/2) / (1/2).
    ratings = tabulate([{"a": "x", "b": "x"}, {"a": "x", "b": "y"}, {"a": "y", "b": "y"}, {"a": "y", "b": "y"}])
    assert percent_agreement(ratings, seed=0).value == pytest.approx(3 / 4)
    assert cohen_kappa(ratings, "a", "b", seed=0).value == pytest.approx(1 / 2)
    # Pooled: 3 of 8 x, 5 of 8 y. Fleiss' chance (9 + 25) / 64; alpha's (3 2 + 5 4) / (8 7).
    assert fleiss_kappa(ratings, seed=0).value == pytest.approx(1 - (1 / 4) / (30 / 64))
    assert krippendorff_alpha(ratings, seed=0).value == pytest.approx(1 - (1 / 4) / (30 / 56))


def test_alpha_is_the_one_of_the_published_example() -> None:
    found = krippendorff_alpha(published(), seed=0)
    assert found.value == pytest.approx(0.743, abs=0.0005)
    assert found.value == pytest.approx(904 / 1216)  # from the page's coincidence matrix: (39 32 - 344) / (40 39 - 344)
    assert (found.units, found.judgements) == (11, 40)  # the last unit has one judgement only
    assert found.ci95 is not None and found.ci95.low < 0.743 < found.ci95.high


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_a_direct_sum_over_pairs(seed: int) -> None:
    ratings = drawn(seed, 30, knows=0.6, missing=0.35)
    units = [row for row in map(given, ratings.codes) if len(row) > 1]
    everything = [code for row in units for code in row]
    n = len(everything)
    observed = sum(sum(x != y for x, y in permutations(row, 2)) / (len(row) - 1) for row in units) / n
    expected = sum(x != y for x, y in permutations(everything, 2)) / (n * (n - 1))
    found = krippendorff_alpha(ratings, seed=0)
    assert found.value == pytest.approx(1 - observed / expected)
    assert (found.units, found.judgements) == (len(units), n)


@pytest.mark.parametrize("seed", range(5))
def test_cohens_kappa_is_that_of_statsmodels_on_the_units_that_both_judged(seed: int) -> None:
    ratings = drawn(seed, 60, knows=0.7, missing=0.2)
    for first, second in permutations("abc", 2):
        pair = ratings.codes[:, ["abc".index(first), "abc".index(second)]]
        both = pair[(pair != NONE).all(axis=1)]
        crossed = np.zeros((3, 3))
        np.add.at(crossed, (both[:, 0], both[:, 1]), 1)
        found = cohen_kappa(ratings, first, second, seed=0)
        assert found.value == pytest.approx(oracle_cohen(crossed).kappa)
        assert (found.units, found.judgements) == (len(both), 2 * len(both))


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_is_that_of_statsmodels_where_all_units_have_equal_numbers(seed: int) -> None:
    ratings = drawn(seed, 40, knows=0.7)
    counts = np.stack([(ratings.codes == code).sum(axis=1) for code in range(3)], axis=1)
    assert fleiss_kappa(ratings, seed=0).value == pytest.approx(oracle_fleiss(counts))
    ratings.codes[np.arange(40), np.arange(40) % 3] = NONE  # two judgements per unit, by changing annotators
    counts = np.stack([(ratings.codes == code).sum(axis=1) for code in range(3)], axis=1)
    assert fleiss_kappa(ratings, seed=0).value == pytest.approx(oracle_fleiss(counts))


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_with_unequal_numbers_gives_each_unit_the_same_weight(seed: int) -> None:
    ratings = drawn(seed, 30, knows=0.7, missing=0.35)
    units = [row for row in map(given, ratings.codes) if len(row) > 1]
    assert len({len(row) for row in units}) > 1
    agreed = [np.mean([x == y for x, y in combinations(row, 2)]) for row in units]
    shares = [np.mean([row.count(code) / len(row) for row in units]) for code in range(3)]
    chance = sum(share**2 for share in shares)
    assert percent_agreement(ratings, seed=0).value == pytest.approx(np.mean(agreed))
    assert fleiss_kappa(ratings, seed=0).value == pytest.approx((np.mean(agreed) - chance) / (1 - chance))


def test_units_with_one_judgement_change_nothing() -> None:
    ratings = drawn(3, 30, knows=0.7)
    alone = np.array([[2, NONE, NONE], [NONE, 1, NONE], [NONE, NONE, NONE]])
    longer = table(np.concatenate([alone, ratings.codes]), 3)
    for measure in ALL:
        assert measure(longer, seed=5) == measure(ratings, seed=5)


@pytest.mark.parametrize("measure", CHANCE_CORRECTED)
def test_a_measure_is_near_1_minus_noise_as_planted_and_0_for_guesses(measure: Measure) -> None:
    assert measure(drawn(0, 20_000, knows=0.8, missing=0.2), seed=0, samples=1).value == pytest.approx(0.64, abs=0.02)
    assert measure(drawn(0, 20_000, knows=0.0, missing=0.2), seed=0, samples=1).value == pytest.approx(0.0, abs=0.02)
    assert measure(drawn(0, 500, knows=1.0, missing=0.2), seed=0, samples=1).value == 1.0


@pytest.mark.parametrize("measure", CHANCE_CORRECTED)
def test_opposite_answers_are_below_chance(measure: Measure) -> None:
    found = measure(table([[0, 1], [1, 0]] * 20, 2), seed=0)
    assert found.value == pytest.approx(-1.0, abs=0.03)  # alpha: 1 - 2 (n - 1) / n
    assert found.ci95 is not None and -1.0 <= found.ci95.low <= found.ci95.high < -0.7


def test_names_and_order_of_categories_and_annotators_play_no_role() -> None:
    ratings = drawn(1, 40, knows=0.7, missing=0.2)
    renamed = np.where(ratings.codes == NONE, NONE, 2 - ratings.codes)
    for measure in (percent_agreement, fleiss_kappa, krippendorff_alpha):
        one = measure(ratings, seed=0)
        for other in (table(renamed, 3), table(ratings.codes[:, ::-1], 3), table(ratings.codes, 7)):
            found = measure(other, seed=0)
            assert found.value == pytest.approx(one.value)
            assert found.ci95 is not None and one.ci95 is not None
            assert (found.ci95.low, found.ci95.high) == pytest.approx((one.ci95.low, one.ci95.high))


# ---------------------------------------------------------------- what the data cannot tell


@pytest.mark.parametrize("measure", CHANCE_CORRECTED)
@pytest.mark.parametrize("units", [1, 2, 50])
def test_one_category_only_is_none_and_not_perfect(measure: Measure, units: int) -> None:
    ratings = table([[1, 1, 1]] * units, 3)
    assert measure(ratings, seed=0) == Agreement(None, None, units, (2 if measure is of_the_first_two else 3) * units)
    assert percent_agreement(ratings, seed=0).value == 1.0


@pytest.mark.parametrize("measure", ALL)
def test_no_unit_with_two_judgements_is_none(measure: Measure) -> None:
    for codes in ([[0, NONE], [NONE, 1]], [[NONE, NONE]], np.empty((0, 2))):
        assert measure(table(codes, 2), seed=0) == Agreement(None, None, 0, 0)


@pytest.mark.parametrize("measure", [percent_agreement, fleiss_kappa, krippendorff_alpha])
def test_an_empty_table_is_none(measure: Measure) -> None:
    assert measure(tabulate([]), seed=0) == Agreement(None, None, 0, 0)
    assert measure(tabulate([{}, {"a": None}]), seed=0) == Agreement(None, None, 0, 0)


def test_an_interval_is_none_where_more_than_a_twentieth_of_the_resamples_is_undefined() -> None:
    def measured(rare: int) -> Agreement:  # they agree on all of 40 units but one
        return cohen_kappa(table([[1, 0]] + [[1, 1]] * rare + [[0, 0]] * (39 - rare), 2), "a", "b", seed=0)

    lone = measured(0)  # one unit holds the only 1: (1 - 1/40)**40 = 36% of the resamples lack it
    assert lone.value is not None and lone.ci95 is None
    three = measured(3)  # four units hold a 1: (1 - 4/40)**40 = 1.5% lack it
    assert three.ci95 is not None and np.isfinite([three.ci95.low, three.ci95.high]).all()


@pytest.mark.parametrize(("n", "low"), [(3, 0.4385), (20, 0.8389), (100, 0.9630)])
def test_full_agreement_leaves_room_for_doubt(n: int, low: float) -> None:
    codes = [[place % 2] * 2 for place in range(n)]
    wilson = wilson_ci(n, n)
    assert wilson.low == pytest.approx(low, abs=0.0001)
    plain = percent_agreement(table(codes, 2), seed=0)
    assert plain.value == 1.0 and plain.ci95 is not None
    assert (plain.ci95.low, plain.ci95.high) == pytest.approx((wilson.low, 1.0))
    ones = n // 2
    chance = (ones**2 + (n - ones) ** 2) / n**2
    for measure in (of_the_first_two, fleiss_kappa):
        found = measure(table(codes, 2), seed=0)
        assert found.value == 1.0 and found.ci95 is not None and found.ci95.high == 1.0
        assert found.ci95.low == pytest.approx((wilson.low - chance) / (1 - chance))


def test_full_agreement_with_a_rare_category_is_hardly_known() -> None:
    found = cohen_kappa(table([[1, 1]] + [[0, 0]] * 19, 2), "a", "b", seed=0)
    assert found.value == 1.0
    assert found.ci95 is not None and found.ci95.low == pytest.approx((0.8389 - 0.905) / 0.095, abs=0.001)
    rarer = krippendorff_alpha(table([[1, 1] + [NONE] * 6] + [[0] * 8] * 19, 2), seed=0)
    assert rarer.value == 1.0 and rarer.ci95 == Interval(-1.0, 1.0)  # Wilson's end is below the least value


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("measure", ALL)
def test_an_interval_is_that_of_the_measure_on_resampled_rows(measure: Measure) -> None:
    ratings = drawn(2, 25, knows=0.6, missing=0.15)
    used = ratings.codes[:, :2] if measure is of_the_first_two else ratings.codes
    kept = ratings.codes[(used != NONE).sum(axis=1) >= 2]
    values = []
    for counts in np.concatenate(list(resample_counts(len(kept), 200, seed=9))):
        values.append(measure(table(np.repeat(kept, counts.astype(int), axis=0), 3), seed=0, samples=1).value)
    low, high = np.quantile(np.array(values, dtype=np.float64), [0.025, 0.975])
    found = measure(ratings, seed=9, samples=200).ci95
    assert found is not None and (found.low, found.high) == pytest.approx((low, high))


def test_with_many_units_the_interval_of_cohens_kappa_is_the_asymptotic_one() -> None:
    ratings = drawn(4, 2_000, knows=0.7)
    crossed = np.zeros((3, 3))
    np.add.at(crossed, (ratings.codes[:, 0], ratings.codes[:, 1]), 1)
    oracle = oracle_cohen(crossed)
    found = cohen_kappa(ratings, "a", "b", seed=0).ci95
    assert found is not None
    assert (found.low, found.high) == pytest.approx((oracle.kappa_low, oracle.kappa_upp), abs=0.003)


@pytest.mark.parametrize("measure", ALL)
def test_the_seed_decides_and_chunks_do_not(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = drawn(0, 40, knows=0.6)
    whole = measure(ratings, seed=7, samples=500)
    assert measure(ratings, seed=7, samples=500) == whole
    assert measure(ratings, seed=8, samples=500).ci95 != whole.ci95
    monkeypatch.setattr(resampling, "_CHUNK_CELLS", 333)
    chunked = measure(ratings, seed=7, samples=500).ci95
    assert chunked is not None and whole.ci95 is not None
    assert (chunked.low, chunked.high) == pytest.approx((whole.ci95.low, whole.ci95.high))


def covered(draws: int, units: int, *, knows: float, shares: tuple[float, ...], samples: int) -> dict[str, float]:
    """Compute how many of the intervals that are given hold the true value; 20% of the judgements are missing."""
    kappa = knows**2
    true = {percent_agreement: kappa + (1 - kappa) * sum(share**2 for share in shares)}
    hits = {measure.__name__: 0 for measure in ALL}
    given = dict(hits)
    for draw in range(draws):
        ratings = drawn(draw, units, knows=knows, shares=shares, missing=0.2)
        for measure in ALL:
            interval = measure(ratings, seed=draw, samples=samples).ci95
            if interval is not None:
                given[measure.__name__] += 1
                hits[measure.__name__] += interval.low <= true.get(measure, kappa) <= interval.high
    return {name: hits[name] / given[name] for name in hits}


def test_intervals_cover() -> None:
    found = covered(150, 80, knows=0.7, shares=(0.6, 0.3, 0.1), samples=400)
    assert all(0.89 <= share <= 0.99 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shares", "units", "low", "high"),
    [
        ((0.5, 0.5), 200, 0.925, 0.965),
        ((0.5, 0.5), 50, 0.895, 0.995),
        ((0.5, 0.5), 20, 0.865, 1.0),
        ((0.6, 0.3, 0.1), 200, 0.925, 0.965),
        ((0.6, 0.3, 0.1), 50, 0.895, 0.995),
        ((0.6, 0.3, 0.1), 20, 0.865, 1.0),
        ((0.85, 0.15), 200, 0.905, 0.965),
        ((0.85, 0.15), 50, 0.765, 1.0),
        ((0.85, 0.15), 20, 0.545, 1.0),
    ],
)
@pytest.mark.parametrize("knows", [0.0, 0.7, 0.95])
def test_intervals_cover_in_a_thousand_draws_as_often_as_the_docstring_says(
    shares: tuple[float, ...], units: int, low: float, high: float, knows: float
) -> None:
    found = covered(1_000, units, knows=knows, shares=shares, samples=600)
    print(shares, units, knows, found)
    assert all(low <= share <= high for share in found.values()), found


# ---------------------------------------------------------------- the table


def test_a_table_of_mappings() -> None:
    ratings = tabulate([{"ann": "left"}, {}, {"bo": "tie", "ann": None}, {"ann": "tie", "bo": "left"}])
    assert ratings.annotators == ("ann", "bo") and ratings.categories == ("left", "tie")
    assert ratings.codes.tolist() == [[0, NONE], [NONE, NONE], [NONE, 1], [1, 0]]
    assert tabulate([{"a": 0}, {"a": False}, {"a": 1}]).categories == (0, 1)


@pytest.mark.parametrize(
    ("codes", "annotators", "message"),
    [
        ([[0, 1]], ("a",), "shape"),
        ([0, 1], ("a", "b"), "shape"),
        ([[0, 2]], ("a", "b"), "code 2"),
        ([[0, -2]], ("a", "b"), "code -2"),
        ([[0, 1]], ("a", "a"), "once"),
    ],
)
def test_a_wrong_table_is_refused(codes: list[object], annotators: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ratings(np.array(codes), annotators, ("x", "y"))


def test_wrong_names_and_numbers_are_refused() -> None:
    ratings = drawn(0, 10, knows=0.5)
    with pytest.raises(ValueError, match=r"'zoe' is not in the table: it holds 'a', 'b', 'c'"):
        cohen_kappa(ratings, "a", "zoe", seed=0)
    with pytest.raises(ValueError, match="named twice"):
        cohen_kappa(ratings, "a", "a", seed=0)
    for measure in ALL:
        with pytest.raises(ValueError, match="at least one resample"):
            measure(ratings, seed=0, samples=0)


# ---------------------------------------------------------------- position


def test_position_bias_by_hand() -> None:
    # 8 first, 2 second: p = 2 (1 + 10 + 45) / 1024.
    found = position_bias([1] * 8 + [-1] * 2 + [0] * 5)
    assert found == PositionBias(8, 2, 5, 0.8, wilson_ci(8, 10), 112 / 1024)
    mirrored = position_bias([-1] * 8 + [1] * 2)
    assert (mirrored.share, mirrored.p_value) == (0.2, found.p_value)
    assert position_bias([0.2, -1.0]) == PositionBias(1, 1, 0, 0.5, wilson_ci(1, 2), 1.0)


def test_position_bias_without_a_decided_choice_is_none() -> None:
    assert position_bias([]) == PositionBias(0, 0, 0, None, None, None)
    assert position_bias([0, 0]) == PositionBias(0, 0, 2, None, None, None)
    with pytest.raises(ValueError, match="finite"):
        position_bias([1, float("nan")])


def test_position_bias_of_fair_choices_is_rarely_significant() -> None:
    rng = np.random.default_rng(0)
    found = [position_bias(rng.choice([-1, 1], size=101)) for _ in range(400)]
    assert sum(one.p_value is not None and one.p_value < 0.05 for one in found) / 400 < 0.06
    hold = [isinstance(one.ci95, Interval) and one.ci95.low <= 0.5 <= one.ci95.high for one in found]
    assert 0.92 <= np.mean(hold) <= 0.98
