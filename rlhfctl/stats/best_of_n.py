"""Estimate what scorers give the best of n samples, for each n, from one pool of samples per prompt.

Choosing the best of n by a reward model is the simplest way to optimize against it, so the curve over n shows what PPO
has to expect: the reward model's own score (the proxy) always rises, and another scorer shows how much of that is real.

The pool has N samples for each of P prompts. A sample's chance to be the best of n that are drawn from the pool without
replacement follows from its rank, so every pool gives an exact, unbiased estimate for each n up to N, and no n samples
have to be drawn. Intervals are bootstraps over prompts. Pure functions on NumPy arrays (P, N).

Stiennon et al., Learning to summarize from human feedback (2020), appendix; Gao, Schulman and Hilton, Scaling Laws for
Reward Model Overoptimization (2022), appendix A; Beirami et al., Theoretical guarantees on the best-of-n alignment
policy (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhfctl.stats.resampling import Interval, bootstrap_columns, bootstrap_mean_ci

Floats = NDArray[np.float64]

_ROUNDING = 1e-12  # relative to the largest score


@dataclass(frozen=True)
class Curve:
    """The mean over prompts at each n, with its 95% interval; `by_prompt` (P, number of n) holds what was averaged."""

    mean: list[float]
    ci95: list[Interval]
    by_prompt: Floats


def sizes(samples: int) -> list[int]:
    """List the n of a curve: the powers of two up to `samples`, and `samples` itself."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return powers if powers[-1] == samples else [*powers, samples]


def kl_bound(n: int) -> float:
    """Compute log n - (n - 1) / n: the most nats per response by which choosing the best of n leaves the reference.

    Stiennon et al. 2020 give it as the KL, Beirami et al. 2024 show that it is an upper bound.
    """
    return math.log(n) - (n - 1) / n


def standardized(scores: ArrayLike) -> Floats:
    """Subtract each prompt's mean of `scores` (P, N) and divide by the standard deviation within prompts.

    A constant that a scorer adds to all responses of a prompt changes no choice, so it does not count. Equal scores
    everywhere give zeros.
    """
    array = _checked(scores)
    centred = array - array.mean(axis=1, keepdims=True)
    variance = float((centred**2).sum()) / (array.shape[0] * (array.shape[1] - 1))
    # Rounding of the mean alone leaves a variance of equal scores that is not exactly 0.
    negligible = (np.finfo(np.float64).eps * float(np.abs(array).max())) ** 2 * array.shape[1]
    return centred / math.sqrt(variance) if variance > negligible else np.zeros_like(centred)


def chances(proxy: ArrayLike, n: int) -> Floats:
    """Compute for each sample of `proxy` (P, N) the probability that it is the best of n drawn from its prompt's N.

    The sample of rank i (0 is the best) is chosen if it is drawn and no better one is: C(N-1-i, n-1) / C(N, n). Samples
    with equal scores share their chances equally.
    """
    array = _checked(proxy)
    prompts, samples = array.shape
    if not 1 <= n <= samples:
        raise ValueError(f"n is {n}: it must lie in 1..{samples}")
    by_rank = np.zeros(samples)
    by_rank[0] = n / samples
    for rank in range(samples - n):
        by_rank[rank + 1] = by_rank[rank] * (samples - rank - n) / (samples - 1 - rank)
    found = np.empty_like(array)
    for row in range(prompts):
        _, place, count = np.unique(-array[row], return_inverse=True, return_counts=True)
        ends = np.cumsum(count)
        shares = [by_rank[end - size : end].mean() for end, size in zip(ends, count, strict=True)]
        found[row] = np.asarray(shares)[place]
    return found


def best_of_n(proxy: ArrayLike, scores: ArrayLike, ns: Sequence[int], *, seed: int, resamples: int = 2_000) -> Curve:
    """Estimate the expected value of `scores` (P, N) at the sample that `proxy` (P, N) likes best among n, for each n.

    With `scores` equal to `proxy` this is the proxy's own curve.
    """
    first, second = _checked(proxy), _checked(scores)
    if first.shape != second.shape:
        raise ValueError(f"proxy has shape {first.shape} and scores {second.shape}")
    by_prompt = np.stack([(chances(first, n) * second).sum(axis=1) for n in ns], axis=1)
    by_prompt[np.abs(by_prompt) <= _ROUNDING * np.abs(second).max()] = 0.0  # of standardized scores at n = 1
    intervals = bootstrap_columns(by_prompt, confidence=0.95, samples=resamples, seed=seed)
    return Curve([float(column.mean()) for column in by_prompt.T], intervals, by_prompt)


def peak(curve: Curve) -> int:
    """Return the index of the n with the highest mean; the first of equal ones."""
    return int(np.argmax(curve.mean))


def decline(curve: Curve, *, seed: int, resamples: int = 2_000) -> tuple[float, Interval]:
    """Compute by how much the mean has fallen from its peak at the largest n, with its 95% interval over prompts.

    The interval takes the peak's place as given. It is therefore somewhat too short where the curve is flat.
    """
    fallen = curve.by_prompt[:, peak(curve)] - curve.by_prompt[:, -1]
    return float(fallen.mean()), bootstrap_mean_ci(fallen, samples=resamples, seed=seed)


def _checked(scores: ArrayLike) -> Floats:
    """Convert to float64 (P, N); raise ValueError unless P >= 1, N >= 2 and all are finite."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2:
        raise ValueError(f"scores have shape {array.shape}: at least one prompt and two samples each are needed")
    if not np.isfinite(array).all():
        raise ValueError("every score must be finite")
    return array
