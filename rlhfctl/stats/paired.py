"""Compute confidence intervals, an exact sign test, win rates, and the verdict that is based on them.

Reads arrays of one number per prompt; reads and writes no files. Pure functions on NumPy arrays; random ones take a
seed. The unit of resampling is the prompt, not the sample: samples of one prompt are not independent, so callers
average them first. Leaves out corrections for several judges (the primary judge is set before the run) and plots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "undecided"]

TIE_TOLERANCE = 1e-12
"""Two values are a tie if they differ by at most this, relative to the larger one. Rounding alone makes means differ
if the same numbers are summed in another order."""

MIN_DECIDED_PROMPTS = 6
"""Minimum number of prompts that are not ties for a decision. If all n agree, the exact two-sided sign test gives
2 / 2**n, which is below 0.05 from n = 6 on. The percentile bootstrap does not show this: one prompt gives an interval
of width 0."""

_CHUNK_CELLS = 1_000_000  # resamples x units in memory at a time: about 24 MB for any n and samples


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included, in the unit of the estimated number."""

    low: float
    high: float


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


def bootstrap_mean_ci(values: ArrayLike, *, confidence: float = 0.95, samples: int = 10_000, seed: int) -> Interval:
    """Compute a confidence interval for the mean of `values` (n,), in their unit, by the percentile bootstrap.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: draw n units (prompts) with replacement,
    take the mean, and read the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of `samples` such means.
    """
    array = _checked(values, "values")
    return _bootstrap_columns(array[:, None], confidence=confidence, samples=samples, seed=seed)[0]


def sign_test(differences: ArrayLike) -> SignTest:
    """Compute the exact two-sided sign test of `differences` (n,): is a win as likely as a loss?

    p = min(1, 2 P[X <= min(wins, losses)]), X ~ Binomial(wins + losses, 1/2). Ties (exact zeros) are dropped; with ties
    only, p is 1.0.
    Dixon and Mood, The statistical sign test, JASA 41 (1946). Integer arithmetic, so exact for any n.
    """
    array = _checked(differences, "differences")
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
    return _mean(_win_values(_checked(differences, "differences")))


def paired_differences(policy: ArrayLike, reference: ArrayLike) -> Floats:
    """Compute policy - reference (n,), in the judge's unit, with ties (see TIE_TOLERANCE) set to exactly 0."""
    first, second = _checked(policy, "policy"), _checked(reference, "reference")
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
    policy_values, reference_values = _checked(policy, "policy"), _checked(reference, "reference")
    wins = _win_values(differences)
    policy_ci, reference_ci, delta_ci, win_ci = _bootstrap_columns(
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
    z = NormalDist().inv_cdf(0.5 + _checked_confidence(confidence) / 2)
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


def _checked(values: ArrayLike, name: str) -> Floats:
    """Convert `values` to float64 (n,); raise ValueError unless n >= 1 and all are finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}: one number per prompt is needed")
    if array.size == 0:
        raise ValueError(f"{name} is empty: at least one value is needed")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        more = f" ({bad.size} such values in all)" if bad.size > 1 else ""
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}: every value must be finite{more}")
    return array


def _checked_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it must lie between 0 and 1")
    return confidence


def _win_values(differences: Floats) -> Floats:
    """Map each difference to 1 for a win, 0.5 for a tie, 0 for a loss."""
    return (np.sign(differences) + 1) / 2


def _mean(array: Floats) -> float:
    """Compute the mean relative to the first value: exact if all are equal, so it is always inside its interval."""
    return float(array[0] + np.mean(array - array[0]))


def _bootstrap_columns(columns: Floats, *, confidence: float, samples: int, seed: int) -> list[Interval]:
    """Compute percentile intervals of the column means of `columns` (n, k), all on the same resamples of its rows."""
    _checked_confidence(confidence)
    if samples < 1:
        raise ValueError(f"samples is {samples}: at least one resample is needed")
    origin = columns[0]  # relative to the first row, so that a column of equal values has an interval of width 0
    centred = columns - origin
    means = np.concatenate([counts @ centred for counts in _resample_counts(len(columns), samples, seed)])
    means = means / len(columns) + origin
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _resample_counts(n: int, samples: int, seed: int) -> Iterator[Floats]:
    """Draw resamples and count each of n units in each: yields (chunk, n); every row sums to n."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n)
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        drawn = rng.integers(0, n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
