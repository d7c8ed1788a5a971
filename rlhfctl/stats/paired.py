"""Compute confidence intervals, an exact sign test, win rates, and the verdict that is based on them.

Reads arrays of one number per prompt; reads and writes no files. Pure functions on NumPy arrays; random ones take a
seed. The unit of resampling is the prompt, not the sample: samples of one prompt are not independent, so callers
average them first. Leaves out corrections for several judges (the primary judge is set before the run) and plots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats.resampling import Floats, Interval, bootstrap_columns, checked, checked_confidence

Verdict = Literal["better", "worse", "undecided"]

TIE_TOLERANCE = 1e-12
"""Two values are a tie if they differ by at most this, relative to the larger one. Rounding alone makes means differ
if the same numbers are summed in another order."""

MIN_DECIDED_PROMPTS = 6
"""Minimum number of prompts that are not ties for a decision. If all n agree, the exact two-sided sign test gives
2 / 2**n, which is below 0.05 from n = 6 on. The percentile bootstrap does not show this: one prompt gives an interval
of width 0."""


@dataclass(frozen=True)
class SignTest:
    """The result of a sign test: counts of differences above, below and at 0, and the exact two-sided p-value."""

    wins: int
    losses: int
    ties: int
    p_value: float


@dataclass(frozen=True)
class PairedComparison:
    """The comparison of policy and reference on the same `n` prompts; scores in the judge's unit, win rates in 0..1."""

    n: int
    policy_mean: float
    policy_ci95: Interval
    reference_mean: float
    reference_ci95: Interval
    delta: float
    delta_ci95: Interval
    win_rate: float
    win_rate_ci95: Interval
    ties: int
    p_value: float


def sign_test(differences: ArrayLike) -> SignTest:
    """Compute the exact two-sided sign test of `differences` (n,): is a win as likely as a loss?

    p = min(1, 2 P[X <= min(wins, losses)]), X ~ Binomial(wins + losses, 1/2). Ties (exact zeros) are dropped; with ties
    only, p is 1.0.
    Dixon and Mood, The statistical sign test, JASA 41 (1946). Integer arithmetic, so exact for any n.
    """
    array = checked(differences, "differences")
    wins = int(np.count_nonzero(array > 0))
    losses = int(np.count_nonzero(array < 0))
    decided = wins + losses
    term = tail = 1  # C(decided, 0)
    for k in range(1, min(wins, losses) + 1):
        term = term * (decided - k + 1) // k
        tail += term
    p_value = min(1.0, 2 * tail / 2**decided)
    return SignTest(wins=wins, losses=losses, ties=array.size - decided, p_value=p_value)


def win_rate(differences: ArrayLike) -> float:
    """Compute the share (0..1) of `differences` (n,) above 0; a tie (exact zero) counts half."""
    return _mean(win_values(checked(differences, "differences")))


def paired_differences(policy: ArrayLike, reference: ArrayLike) -> Floats:
    """Compute policy - reference (n,), in the judge's unit, with ties (see TIE_TOLERANCE) set to exactly 0."""
    first, second = checked(policy, "policy"), checked(reference, "reference")
    if first.size != second.size:
        raise ValueError(
            f"policy has {first.size} values and reference {second.size}: one of each per prompt is needed"
        )
    differences = first - second
    scale = np.maximum(np.abs(first), np.abs(second))
    return np.where(np.abs(differences) <= TIE_TOLERANCE * scale, 0.0, differences)


def compare_paired(policy: ArrayLike, reference: ArrayLike, *, seed: int, samples: int = 10_000) -> PairedComparison:
    """Compare `policy` (n,) with `reference` (n,): one value per prompt each, the mean over that prompt's samples.

    All four 95% intervals are percentile bootstraps over prompts on the same resamples, so they are consistent. Whole
    prompts are resampled, which keeps the pairing. The p-value is that of the exact sign test (ties dropped); the win
    rate counts ties half.
    """
    differences = paired_differences(policy, reference)
    policy_values, reference_values = checked(policy, "policy"), checked(reference, "reference")
    wins = win_values(differences)
    policy_ci, reference_ci, delta_ci, win_ci = bootstrap_columns(
        np.stack([policy_values, reference_values, differences, wins], axis=1),
        confidence=0.95,
        samples=samples,
        seed=seed,
    )
    test = sign_test(differences)
    return PairedComparison(
        n=policy_values.size,
        policy_mean=_mean(policy_values),
        policy_ci95=policy_ci,
        reference_mean=_mean(reference_values),
        reference_ci95=reference_ci,
        delta=_mean(differences),
        delta_ci95=delta_ci,
        win_rate=_mean(wins),
        win_rate_ci95=win_ci,
        ties=test.ties,
        p_value=test.p_value,
    )


def verdict(c: PairedComparison) -> Verdict:
    """Decide one comparison by its 95% intervals: better, worse or undecided.

    better: the interval of the mean difference is above 0, and that of the win rate is above 0.5. worse: both are
    below. undecided: all other results, and fewer than MIN_DECIDED_PROMPTS prompts that are not ties. Both numbers are
    needed because each alone can mislead: a few very large scores move the mean, many tiny differences move the win
    rate.
    """
    if c.n - c.ties < MIN_DECIDED_PROMPTS:
        return "undecided"
    if c.delta_ci95.low > 0 and c.win_rate_ci95.low > 0.5:
        return "better"
    if c.delta_ci95.high < 0 and c.win_rate_ci95.high < 0.5:
        return "worse"
    return "undecided"


def wilson_ci(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Compute the Wilson score interval for a share (0..1) of `successes` in `n` trials, e.g. an accuracy.

    Wilson, Probable inference, JASA 22 (1927), without continuity correction:
    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    if n < 1:
        raise ValueError(f"n is {n}: an interval needs at least one trial")
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}: it must lie in 0..{n}")
    z = NormalDist().inv_cdf(0.5 + checked_confidence(confidence) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    shrink = 1 + z * z / n
    return Interval(  # for no and for all successes one end is exactly 0 or 1: rounding must not change it
        low=0.0 if successes == 0 else (centre - spread) / shrink,
        high=1.0 if successes == n else (centre + spread) / shrink,
    )


def distinct_n(token_lists: Sequence[Sequence[str | int]], n: int) -> float:
    """Compute distinct n-grams / all n-grams (0..1) over the whole set of responses; 0.0 without n-grams.

    Li et al., A Diversity-Promoting Objective Function (2016). An n-gram never spans two responses. The share decreases
    as the set grows, so compare sets of equal size only.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least one token")
    total = 0
    seen: set[tuple[str | int, ...]] = set()
    for tokens in token_lists:
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else 0.0


def win_values(differences: Floats) -> Floats:
    """Map each difference to 1 for a win, 0.5 for a tie, 0 for a loss."""
    return (np.sign(differences) + 1) / 2


def _mean(array: Floats) -> float:
    """Compute the mean relative to the first value: exact if all are equal, so it is always inside its interval."""
    return float(array[0] + np.mean(array - array[0]))
