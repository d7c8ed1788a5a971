"""Intervals over seeds and prompts: by hand, against SciPy, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlhfctl.stats.hierarchical import (
    compare_over_seeds,
    hierarchical_bootstrap,
    mean_squares,
    verdict_over_seeds,
)

DRAWS, PROMPTS = 2000, 60
NOMINAL = 0.95
LUCK = 0.015
"""Three standard errors of a share of 0.95 among 2,000 draws: 3 sqrt(0.95 x 0.05 / 2000)."""


def planted(rng: np.random.Generator, seeds: int, spread: tuple[float, float, float]) -> np.ndarray:
    """Values (seeds, prompts) with mean 0, and deviations of seeds, prompts and residual as in `spread`."""
    of_seeds, of_prompts, residual = spread
    return (
        of_seeds * rng.standard_normal((seeds, 1))
        + of_prompts * rng.standard_normal((1, PROMPTS))
        + residual * rng.standard_normal((seeds, PROMPTS))
    )


def coverage(seeds: int, spread: tuple[float, float, float]) -> float:
    rng, held = np.random.default_rng(seeds), 0
    for draw in range(DRAWS):
        interval = hierarchical_bootstrap(planted(rng, seeds, spread), seed=draw, samples=1000)
        held += interval.low <= 0 <= interval.high
    return held / DRAWS


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("spread", "most"),
    [
        ((0.3, 0.3, 1.0), 0.97),  # seeds, prompts and chance all matter
        ((0.0, 1.0, 0.3), 0.97),  # prompts decide
    ],
)
def test_intervals_hold_the_mean_of_new_seeds_and_prompts(
    seeds: int, spread: tuple[float, float, float], most: float
) -> None:
    assert NOMINAL - LUCK <= coverage(seeds, spread) <= most


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    "spread", [(0.0, 1.0, 1.0), (0.1, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 0.3, 0.3), (0.0, 0.0, 1.0)]
)
def test_intervals_cover_for_any_number_of_seeds(seeds: int, spread: tuple[float, float, float]) -> None:
    """Where seeds make no difference, an interval of few seeds cannot know it, and holds the mean more often."""
    assert coverage(seeds, spread) >= NOMINAL - LUCK


def test_the_usual_hierarchical_bootstrap_would_cover_too_seldom() -> None:
    """Drawing prompts anew within each drawn seed forgets that all seeds answer the same prompts."""
    rng, held, draws = np.random.default_rng(0), 0, 200
    for _ in range(draws):
        values = planted(rng, 3, (0.3, 1.0, 0.3))
        rows = rng.integers(0, 3, size=(300, 3))
        columns = rng.integers(0, PROMPTS, size=(300, 3, PROMPTS))
        low, high = np.quantile(values[rows[:, :, None], columns].mean(axis=(1, 2)), [0.025, 0.975])
        held += low <= 0 <= high
    assert held / draws < 0.88


def test_mean_squares_are_those_of_a_two_way_analysis_of_variance() -> None:
    # Seeds (rows) 1 and 5, prompts +-1, no residual but in the last row: by hand.
    values = np.array([[0.0, 2.0], [4.0, 6.0]])
    assert mean_squares(values) == pytest.approx((16.0, 4.0, 0.0))  # 2 ((1-3)^2 + (5-3)^2) / 1; 2 (1 + 1) / 1; 0
    skew = np.array([[0.0, 2.0], [4.0, 8.0]])
    # Mean 3.5, rows 1 and 6, columns 2 and 5: residuals +-0.5.
    assert mean_squares(skew) == pytest.approx((2 * (2.5**2 + 2.5**2), 2 * (1.5**2 + 1.5**2), 4 * 0.25))


def test_with_equal_prompts_the_interval_is_students() -> None:
    per_seed = np.array([0.1, 0.3, 0.2])
    values = np.repeat(per_seed[:, None], 50, axis=1)
    found = hierarchical_bootstrap(values, seed=0, samples=100_000)
    expected = scipy_stats.t.interval(0.95, 2, loc=per_seed.mean(), scale=scipy_stats.sem(per_seed))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-4)
    narrower = hierarchical_bootstrap(values, seed=0, samples=100_000, confidence=0.8)
    expected = scipy_stats.t.interval(0.8, 2, loc=per_seed.mean(), scale=scipy_stats.sem(per_seed))
    assert (narrower.low, narrower.high) == pytest.approx(expected, abs=1e-4)


def test_with_equal_seeds_the_interval_is_that_of_the_prompts() -> None:
    row = np.random.default_rng(1).standard_normal(400)
    found = hierarchical_bootstrap(np.tile(row, (3, 1)), seed=0, samples=20_000)
    error = scipy_stats.sem(row)
    assert (found.low, found.high) == pytest.approx((row.mean() - 1.96 * error, row.mean() + 1.96 * error), abs=0.006)


def test_equal_values_have_an_interval_of_width_zero() -> None:
    for value in (0.0, 0.1, 1 / 3):
        found = hierarchical_bootstrap(np.full((3, 7), value), seed=0, samples=50)
        assert (found.low, found.high) == (value, value)


def test_equal_seeds_of_the_draws_give_equal_intervals_and_others_nearly() -> None:
    values = planted(np.random.default_rng(3), 3, (0.3, 1.0, 1.0))
    first, again, other = (hierarchical_bootstrap(values, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.03 * (first.high - first.low))


def test_one_prompt_leaves_the_seeds() -> None:
    found = hierarchical_bootstrap(np.array([[0.1], [0.3], [0.2]]), seed=0, samples=100_000)
    assert (found.low, found.high) == pytest.approx(scipy_stats.t.interval(0.95, 2, 0.2, 0.1 / 3**0.5), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[1.0, 2.0]], "two seeds or more"),
        ([1.0, 2.0], "two seeds or more"),
        ([[], []], "one prompt or more"),
        ([[1.0], [float("nan")]], "1 values are not finite"),
    ],
)
def test_other_values_are_refused(values: list[object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hierarchical_bootstrap(np.array(values, dtype=float), seed=0)


def test_other_options_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence is 1"):
        hierarchical_bootstrap(np.zeros((2, 2)), seed=0, confidence=1)
    with pytest.raises(ValueError, match="at least one draw"):
        hierarchical_bootstrap(np.zeros((2, 2)), seed=0, samples=0)


# ---------------------------------------------------------------- comparisons


def test_a_comparison_counts_wins_and_ties_of_all_seeds() -> None:
    policy = [[1.0, 0.0, 2.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    reference = [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    found = compare_over_seeds(policy, reference, seed=0, samples=100)
    assert (found.seeds, found.n, found.ties) == (2, 4, 2)  # prompts 1 and 3 tie at both seeds
    assert found.delta == pytest.approx((1 + 1 + 1 - 1) / 8)
    assert found.win_rate == pytest.approx((3 + 4 * 0.5) / 8)
    assert 0 <= found.win_rate_ci95.low <= found.win_rate <= found.win_rate_ci95.high <= 1
    swapped = compare_over_seeds(reference, policy, seed=0, samples=100)
    assert (swapped.delta, swapped.win_rate) == pytest.approx((-found.delta, 1 - found.win_rate))


def test_both_sides_have_a_value_for_each_seed_and_prompt() -> None:
    with pytest.raises(ValueError, match="one value each"):
        compare_over_seeds([[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0]], seed=0)


@pytest.mark.parametrize(
    ("shifts", "word"),
    [
        ((1.0, 1.1, 0.9), "better"),
        ((-1.0, -1.1, -0.9), "worse"),
        ((0.0, 0.0, 0.0), "undecided"),
        ((1.5, -0.4, 0.7), "undecided"),  # the mean is above 0, but another seed may well be below
    ],
)
def test_seeds_that_disagree_leave_it_undecided(shifts: tuple[float, ...], word: str) -> None:
    rng = np.random.default_rng(5)
    reference = rng.standard_normal((3, 100))
    policy = reference + np.array(shifts)[:, None] + 0.5 * rng.standard_normal((3, 100))
    assert verdict_over_seeds(compare_over_seeds(policy, reference, seed=0, samples=2000)) == word


def test_few_prompts_that_are_no_ties_decide_nothing() -> None:
    policy = np.zeros((3, 50))
    policy[:, :5] = 1.0
    assert verdict_over_seeds(compare_over_seeds(policy, np.zeros((3, 50)), seed=0, samples=500)) == "undecided"
    always = compare_over_seeds(np.ones((3, 5)), np.zeros((3, 5)), seed=0, samples=500)
    assert always.win_rate_ci95.low == 1.0 and verdict_over_seeds(always) == "undecided"
    assert verdict_over_seeds(compare_over_seeds(np.ones((3, 6)), np.zeros((3, 6)), seed=0, samples=500)) == "better"
