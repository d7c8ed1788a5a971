"""Compare several policies with each other: each pair by a sign test, all of them together by one strength each.

Reads differences of values per prompt; pure functions. The unit is the prompt, for every interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats.many import holm
from rlhfctl.stats.paired import sign_test, win_values
from rlhfctl.stats.resampling import Interval, bootstrap_columns, checked
from rlhfctl.stats.strengths import Strength, strengths

SAMPLES = 2_000
"""Resamples behind each interval: each resample computes all strengths anew."""


@dataclass(frozen=True)
class Meeting:
    """One pair of policies, by index: `win_rate` is the first one's, ties half. `p_value` is the exact sign test's."""

    first: int
    second: int
    win_rate: float
    win_rate_ci95: Interval
    wins: int
    losses: int
    ties: int
    p_value: float
    p_adjusted: float


@dataclass(frozen=True)
class RoundRobin:
    """The strengths of the policies by index, and the meetings that they follow from."""

    strengths: list[Strength]
    meetings: list[Meeting]


def round_robin(differences: Mapping[tuple[int, int], ArrayLike], *, seed: int, samples: int = SAMPLES) -> RoundRobin:
    """Compute strengths and pairwise results of policies 0..k-1 from (i, j) -> values of i less those of j (n,).

    All arrays are about the same n prompts; ties are exact zeros (paired_differences). A pair that is missing did not
    meet. p is corrected for the number of pairs by Holm's method. ValueError where strengths do not exist.
    """
    pairs = list(differences)
    wins = np.stack([win_values(checked(differences[pair], f"differences of {pair}")) for pair in pairs], axis=1)
    k = 1 + max(max(pair) for pair in pairs)
    outcomes = np.zeros((len(wins), k, k))
    for (i, j), won in zip(pairs, wins.T, strict=True):
        outcomes[:, i, j], outcomes[:, j, i] = won, 1 - won
    tests = [sign_test(differences[pair]) for pair in pairs]
    intervals = bootstrap_columns(wins, confidence=0.95, samples=samples, seed=seed)
    adjusted = holm([test.p_value for test in tests])
    meetings = [
        Meeting(i, j, float(np.mean(won)), interval, test.wins, test.losses, test.ties, test.p_value, p_adjusted)
        for (i, j), won, interval, test, p_adjusted in zip(pairs, wins.T, intervals, tests, adjusted, strict=True)
    ]
    return RoundRobin(strengths(outcomes, seed=seed, samples=samples), meetings)
