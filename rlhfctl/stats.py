"""How far a difference can be trusted: intervals, an exact test, win rates, and the verdict that rests on them.

Reads arrays of one number per prompt, writes nothing. Pure functions on NumPy arrays; everything random takes a seed.
The unit of resampling is the prompt, never the sample: samples of one prompt are not independent, so callers average
them first. Left out: corrections for several judges (the primary judge is named before the run) and any plotting.
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
"""Two values are tied when they differ by at most this, relative to the larger: means of the same numbers summed in
another order differ by rounding alone."""

MIN_DECIDED_PROMPTS = 6
"""Fewer prompts that are not ties decide nothing: even when all n agree, the exact two-sided sign test gives 2 / 2**n,
which first falls below 0.05 at n = 6. The percentile bootstrap cannot see this (one prompt gives an interval of
width 0)."""

_CHUNK_CELLS = 1_000_000  # resamples x units held at once: about 24 MB, whatever n and samples are


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included, in the unit of what it is about."""

    low: float
    high: float


@dataclass(frozen=True)
class SignTest:
    """Counts of differences above, below and at 0, and the exact two-sided p-value of the first two."""

    wins: int
    losses: int
    ties: int
    p_value: float


@dataclass(frozen=True)
class PairedComparison:
    """Policy against reference on the same `n` prompts; scores in the judge's unit, win rates in 0..1."""

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
    """Interval for the mean of `values` (n,), in their unit, by the percentile bootstrap over units (prompts).

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: draw n units with replacement, take the
    mean, and read the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of `samples` such means.
    """
    array = _checked(values, "values")
    return _bootstrap_columns(array[:, None], confidence=confidence, samples=samples, seed=seed)[0]


def sign_test(differences: ArrayLike) -> SignTest:
    """Exact two-sided sign test of `differences` (n,): is a win as likely as a loss? Ties (exact zeros) are dropped.

    p = min(1, 2 P[X <= min(wins, losses)]), X ~ Binomial(wins + losses, 1/2); 1.0 when nothing but ties is left.
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
    """Share (0..1) of `differences` (n,) above 0; a tie (exact zero) counts half."""
    return _mean(_win_values(_checked(differences, "differences")))


def paired_differences(policy: ArrayLike, reference: ArrayLike) -> Floats:
    """policy - reference (n,), in the judge's unit, with ties (see TIE_TOLERANCE) set to exactly 0."""
    ours, theirs = _checked(policy, "policy"), _checked(reference, "reference")
    if ours.size != theirs.size:
        raise ValueError(f"policy has {ours.size} values and reference {theirs.size}: one of each per prompt is needed")
    differences = ours - theirs
    scale = np.maximum(np.abs(ours), np.abs(theirs))
    return np.where(np.abs(differences) <= TIE_TOLERANCE * scale, 0.0, differences)


def compare_paired(policy: ArrayLike, reference: ArrayLike, *, seed: int, samples: int = 10_000) -> PairedComparison:
    """Compare `policy` (n,) with `reference` (n,): one value per prompt each, the mean over that prompt's samples.

    All four 95% intervals are percentile bootstraps over prompts on the same resamples, so they tell one story;
    resampling prompts whole keeps the pairing. The p-value is the exact sign test's (ties dropped), the win rate
    counts ties half.
    """
    differences = paired_differences(policy, reference)
    ours, theirs = _checked(policy, "policy"), _checked(reference, "reference")
    wins = _win_values(differences)
    policy_ci, reference_ci, delta_ci, win_ci = _bootstrap_columns(
        np.stack([ours, theirs, differences, wins], axis=1), confidence=0.95, samples=samples, seed=seed
    )
    test = sign_test(differences)
    return PairedComparison(
        n=ours.size,
        policy_mean=_mean(ours),
        policy_ci95=policy_ci,
        reference_mean=_mean(theirs),
        reference_ci95=reference_ci,
        delta=_mean(differences),
        delta_ci95=delta_ci,
        win_rate=_mean(wins),
        win_rate_ci95=win_ci,
        ties=test.ties,
        p_value=test.p_value,
    )


def verdict(c: PairedComparison) -> Verdict:
    """better: the mean difference and the win rate both lie above chance with their whole 95% intervals.

    worse is the mirror image; anything else, and fewer than MIN_DECIDED_PROMPTS untied prompts, is undecided. Both
    are asked for because either alone misleads: a few huge scores move the mean, many tiny ones the win rate.
    """
    if c.n - c.ties < MIN_DECIDED_PROMPTS:
        return "undecided"
    if c.delta_ci95.low > 0 and c.win_rate_ci95.low > 0.5:
        return "better"
    if c.delta_ci95.high < 0 and c.win_rate_ci95.high < 0.5:
        return "worse"
    return "undecided"


def wilson_ci(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval for a share (0..1) of `successes` in `n` trials: for accuracies.

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
    return Interval(  # the ends are exactly 0 and 1 there: rounding must not say otherwise
        low=0.0 if successes == 0 else (centre - spread) / shrink,
        high=1.0 if successes == n else (centre + spread) / shrink,
    )


def distinct_n(token_lists: Sequence[Sequence[str | int]], n: int) -> float:
    """Distinct n-grams over all n-grams (0..1) of the whole set of responses; 0.0 when there are none.

    Li et al., A Diversity-Promoting Objective Function (2016). No n-gram crosses from one response to the next. The
    share falls as the set grows, so compare sets of like size only.
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
    """`values` as float64 (n,), n >= 1, all finite; ValueError otherwise."""
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
    """1 for a win, 0.5 for a tie, 0 for a loss."""
    return (np.sign(differences) + 1) / 2


def _mean(array: Floats) -> float:
    """The mean, taken about the first value: exact when all are equal, so that it never leaves its own interval."""
    return float(array[0] + np.mean(array - array[0]))


def _bootstrap_columns(columns: Floats, *, confidence: float, samples: int, seed: int) -> list[Interval]:
    """Percentile intervals of the column means of `columns` (n, k), all on the same resamples of its rows."""
    _checked_confidence(confidence)
    if samples < 1:
        raise ValueError(f"samples is {samples}: at least one resample is needed")
    origin = columns[0]  # about the first row, so that a column of equal values has an interval of width exactly 0
    centred = columns - origin
    means = np.concatenate([counts @ centred for counts in _resample_counts(len(columns), samples, seed)])
    means = means / len(columns) + origin
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _resample_counts(n: int, samples: int, seed: int) -> Iterator[Floats]:
    """How often each of n units is drawn in each resample, (chunk, n) at a time; every row sums to n."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n)
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        drawn = rng.integers(0, n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
