"""round_robin.py: by hand, and policies of planted quality whose order is found."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from rlhfctl.stats.paired import compare_paired, paired_differences
from rlhfctl.stats.round_robin import RoundRobin, round_robin
from rlhfctl.stats.strengths import win_probabilities

Floats = NDArray[np.float64]


def played(values: Floats, samples: int = 200) -> RoundRobin:
    """Let all columns of values (n, k) meet."""
    pairs = combinations(range(values.shape[1]), 2)
    return round_robin(
        {(i, j): paired_differences(values[:, i], values[:, j]) for i, j in pairs}, seed=0, samples=samples
    )


def test_three_policies_by_hand() -> None:
    # by prompt: 0 beats 1 four times and loses once; 0 and 2 tie always; 1 against 2 follows
    found = played(np.array([[1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 1, 0]], dtype=np.float64))
    first, second, third = found.meetings
    assert [(one.first, one.second) for one in found.meetings] == [(0, 1), (0, 2), (1, 2)]
    assert (first.wins, first.losses, first.ties, first.win_rate) == (4, 1, 0, 0.8)
    assert first.p_value == pytest.approx(2 * (1 + 5) / 2**5)
    assert (second.ties, second.win_rate, second.p_value) == (5, 0.5, 1.0)
    assert (third.wins, third.win_rate) == (1, pytest.approx(0.2))
    assert [one.p_adjusted for one in found.meetings] == pytest.approx([1.0, 1.0, 1.0])  # 3 x 0.375
    strengths = [one.value for one in found.strengths]
    assert strengths[0] == pytest.approx(strengths[2]) and strengths[0] > strengths[1]
    assert sum(strengths) == pytest.approx(0.0)
    # 0 and 2 have the same wins against 1: 4.5 to 1.5 with the added tie, so log 3
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3))


def test_the_intervals_of_win_rates_are_those_of_the_paired_comparison() -> None:
    values = np.random.default_rng(1).normal([0.5, 0.0, 0.2], size=(60, 3))
    found = played(values)
    for one in found.meetings:
        oracle = compare_paired(values[:, one.first], values[:, one.second], seed=0, samples=200)
        assert one.win_rate == pytest.approx(oracle.win_rate)
        assert (one.win_rate_ci95.low, one.win_rate_ci95.high) == pytest.approx(
            (oracle.win_rate_ci95.low, oracle.win_rate_ci95.high)
        )
        assert one.p_value == oracle.p_value and one.p_adjusted >= one.p_value


def test_planted_qualities_are_found_in_order() -> None:
    """Values with extreme-value noise win with the probabilities of Bradley and Terry (Yellott 1977)."""
    planted = np.array([0.9, -0.4, 0.1, -0.6])
    values = planted + np.random.default_rng(2).gumbel(size=(4_000, 4))
    found = played(values, samples=100)
    assert [one.value for one in found.strengths] == pytest.approx(planted, abs=0.06)
    for one in found.meetings:
        assert one.win_rate == pytest.approx(win_probabilities(planted)[one.first, one.second], abs=0.03)
    assert all(one.ci95.low < one.value < one.ci95.high for one in found.strengths)


def test_pairs_that_did_not_meet_are_linked_by_a_third() -> None:
    values = np.random.default_rng(3).gumbel([1.0, -1.0, 0.0], size=(500, 3))
    met = {(i, 2): paired_differences(values[:, i], values[:, 2]) for i in (0, 1)}
    found = round_robin(met, seed=0, samples=50)
    assert [one.value for one in found.strengths] == pytest.approx([1.0, -1.0, 0.0], abs=0.25)
    assert max(one.p_adjusted for one in found.meetings) < 1e-6  # two tests, both clear
    with pytest.raises(ValueError, match="never compared"):
        round_robin({(0, 1): met[0, 2], (2, 3): met[1, 2]}, seed=0, samples=50)
