"""strengths.py: choix and statsmodels as oracles, planted strengths that are found, coverage, what is not finite."""

from __future__ import annotations

import choix
import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray

from rlhfctl.stats.strengths import bradley_terry, strengths, win_probabilities

Floats = NDArray[np.float64]
PLANTED = np.array([-0.6, 0.0, 0.1, 0.5])
WINS = [[0, 20, 11, 4], [10, 0, 17, 6], [19, 13, 0, 9], [26, 24, 21, 0]]


def drawn(seed: int, n: int, planted: Floats = PLANTED) -> Floats:
    """Draw outcomes (n, k, k) of a round robin in which every pair meets on every prompt."""
    rng = np.random.default_rng(seed)
    beaten = rng.random((n, len(planted), len(planted))) < win_probabilities(planted)
    upper = np.triu(beaten, 1)
    return (upper + np.triu(~beaten, 1).transpose(0, 2, 1)).astype(np.float64)


def test_choix_gives_the_same() -> None:
    k = len(WINS)
    comparisons = [(i, j) for i in range(k) for j in range(k) for _ in range(WINS[i][j])]
    oracle = choix.opt_pairwise(k, comparisons, alpha=0.0)
    assert bradley_terry(WINS, extra_ties=0) == pytest.approx(oracle - np.mean(oracle), abs=1e-5)


def test_a_logistic_regression_gives_the_same_also_with_ties() -> None:
    wins = np.asarray(WINS, dtype=np.float64)
    wins[0, 1] += 2.5
    wins[1, 0] += 2.5  # five ties
    rows, shares, weights = [], [], []
    for i in range(4):
        for j in range(i):
            row = np.zeros(4)
            row[i], row[j] = 1.0, -1.0
            rows.append(row[1:])
            games = wins[i, j] + wins[j, i]
            shares.append(wins[i, j] / games)
            weights.append(games)
    fitted = sm.GLM(shares, np.array(rows), family=sm.families.Binomial(), freq_weights=np.array(weights)).fit()
    oracle = np.concatenate([[0.0], fitted.params])
    assert bradley_terry(wins, extra_ties=0) == pytest.approx(oracle - oracle.mean(), abs=1e-6)


def test_two_policies_by_hand() -> None:
    # 3 to 1: log-odds log 3, half of it each side of 0
    assert bradley_terry([[0, 3], [1, 0]], extra_ties=0) == pytest.approx([np.log(3) / 2, -np.log(3) / 2])
    assert win_probabilities([np.log(3) / 2, -np.log(3) / 2])[0] == pytest.approx([0.5, 0.75])


def test_planted_strengths_are_found() -> None:
    assert bradley_terry(drawn(0, 20_000).sum(axis=0)) == pytest.approx(PLANTED - PLANTED.mean(), abs=0.04)


def test_a_policy_against_itself_is_as_strong() -> None:
    outcomes = np.full((30, 2, 2), 0.5)
    outcomes[:, [0, 1], [0, 1]] = 0.0
    found = strengths(outcomes, seed=0, samples=50)
    assert [one.value for one in found] == pytest.approx([0.0, 0.0])
    assert win_probabilities([one.value for one in found]) == pytest.approx(np.full((2, 2), 0.5))


def test_who_wins_everything_has_a_finite_strength_by_one_tie() -> None:
    outcomes = np.zeros((40, 2, 2))
    outcomes[:, 0, 1] = 1.0
    found = strengths(outcomes, seed=0, samples=50)
    assert found[0].value - found[1].value == pytest.approx(np.log(40.5 / 0.5))
    with pytest.raises(ValueError, match="won or lost every comparison"):
        bradley_terry(outcomes.sum(axis=0), extra_ties=0)


def test_groups_that_never_met_cannot_be_compared() -> None:
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = wins[2, 3] = wins[3, 2] = 5
    with pytest.raises(ValueError, match="never compared"):
        bradley_terry(wins)


@pytest.mark.parametrize("wins", [np.zeros((2, 3)), np.eye(2), -np.ones((2, 2)) + np.eye(2), [[0.0]]])
def test_what_is_no_matrix_of_wins_is_refused(wins: Floats) -> None:
    with pytest.raises(ValueError, match="wins"):
        bradley_terry(wins)
    with pytest.raises(ValueError, match="outcomes"):
        strengths(np.zeros((3, 2)), seed=0)


def covered(draws: int, n: int) -> float:
    hits = 0
    for draw in range(draws):
        found = strengths(drawn(draw, n), seed=draw, samples=300)
        centred = PLANTED - PLANTED.mean()
        hits += sum(one.ci95.low <= planted <= one.ci95.high for one, planted in zip(found, centred, strict=True))
    return hits / (draws * len(PLANTED))


def test_intervals_cover() -> None:
    assert 0.91 <= covered(100, 100) <= 0.985


@pytest.mark.slow
def test_intervals_cover_in_a_thousand_draws() -> None:
    assert 0.93 <= covered(1_000, 200) <= 0.965
