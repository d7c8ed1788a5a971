"""Compute Bradley-Terry strengths of several policies from all their comparisons, with intervals.

Reads arrays of outcomes per prompt; pure functions. Bradley and Terry, Rank analysis of incomplete block designs,
Biometrika 39 (1952): P(i beats j) = sigmoid(strength i - strength j). A tie counts as half a win for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats.resampling import Floats, Interval, percentile_interval, resample_counts

EXTRA_TIES = 1.0
"""Ties that are added to each pair that was compared. Without them a policy that wins everything has no finite
strength. One tie among hundreds of prompts moves a strength by less than a tenth of its interval."""

_STEPS, _LARGEST_STEP, _CLOSE = 100, 2.0, 1e-10


@dataclass(frozen=True)
class Strength:
    """A policy's strength in log-odds, with its 95% interval; the mean over policies is 0."""

    value: float
    ci95: Interval


def bradley_terry(wins: ArrayLike, *, extra_ties: float = EXTRA_TIES) -> Floats:
    """Compute the strengths (k,) that maximize the likelihood of `wins` (k, k): how often i beat j; ties half each.

    Raises ValueError where policies fall into two groups without comparisons between them, or where one group won all
    (without `extra_ties`): then there is no finite maximum (Ford, American Mathematical Monthly 64, 1957).
    """
    matrix = np.asarray(wins, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"wins has shape {matrix.shape}: a square matrix of at least two policies is needed")
    if not np.all(np.isfinite(matrix)) or np.any(matrix < 0) or np.any(np.diagonal(matrix)):
        raise ValueError("wins must be finite, not negative, and 0 on the diagonal")
    prepared = _with_ties(matrix[None], extra_ties)
    if not _connected(prepared[0] > 0):
        raise ValueError("some policies won or lost every comparison with the others, or were never compared with them")
    result: Floats = _maximum(prepared)[0]
    return result


def strengths(outcomes: ArrayLike, *, seed: int, samples: int = 2_000) -> list[Strength]:
    """Compute strengths with 95% intervals from `outcomes` (n, k, k): 1 where i beat j on a prompt, 0.5 for a tie.

    A pair that was not compared on a prompt has 0 both ways. The intervals are percentile bootstraps over prompts: the
    comparisons on one prompt are not independent, so whole prompts are resampled.
    """
    array = np.asarray(outcomes, dtype=np.float64)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"outcomes has shape {array.shape}: (prompts, policies, policies) is needed")
    values = bradley_terry(array.sum(axis=0))
    n, k, _ = array.shape
    flat = array.reshape(n, k * k)
    drawn = np.concatenate(
        [
            _maximum(_with_ties((counts @ flat).reshape(-1, k, k), EXTRA_TIES))
            for counts in resample_counts(n, samples, seed)
        ]
    )
    return [Strength(float(values[i]), percentile_interval(drawn[:, i])) for i in range(k)]


def win_probabilities(values: ArrayLike) -> Floats:
    """Compute P(i beats j) (k, k) from strengths (k,); 1/2 on the diagonal."""
    array = np.asarray(values, dtype=np.float64)
    result: Floats = 1 / (1 + np.exp(array[None, :] - array[:, None]))
    return result


def _with_ties(wins: Floats, ties: float) -> Floats:
    """Add `ties` to each pair that was compared in any of the matrices (r, k, k)."""
    compared = (wins + wins.transpose(0, 2, 1)).max(axis=0) > 0
    result: Floats = wins + ties / 2 * compared
    return result


def _connected(beat: np.typing.NDArray[np.bool_]) -> bool:
    """Tell whether each policy can be reached from each other one along wins: (k, k)."""
    reach = beat | np.eye(len(beat), dtype=bool)
    for _ in range(len(beat)):
        reach = reach | ((reach.astype(np.int64) @ reach.astype(np.int64)) > 0)
    return bool(reach.all())


def _maximum(wins: Floats) -> Floats:
    """Maximize the log-likelihood of each matrix (r, k, k) by Newton's method; strengths (r, k) with mean 0."""
    rows, k, _ = wins.shape
    games = wins + wins.transpose(0, 2, 1)
    values = np.zeros((rows, k))
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(values[:, None, :] - values[:, :, None]))  # P(i beats j)
        gradient = (wins - games * expected).sum(axis=2)
        weights = games * expected * (1 - expected)
        hessian = -weights
        index = np.arange(k)
        hessian[:, index, index] = weights.sum(axis=2)
        hessian += 1 / k  # the likelihood does not see a common shift: this fixes the mean
        step = np.clip(np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], -_LARGEST_STEP, _LARGEST_STEP)
        values = values + step
        if np.abs(step).max() < _CLOSE:
            break
    result: Floats = values - values.mean(axis=1, keepdims=True)
    return result
