"""Resample prompts with replacement: confidence intervals of means and of other statistics by the bootstrap.

Reads arrays with one row per prompt; reads and writes no files. The unit of resampling is the prompt, not the sample:
samples of one prompt are not independent, so callers average them first. A resample is a row of counts, one count per
prompt, so that a statistic of all resamples at once is a product of matrices. Random functions take a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_CHUNK_CELLS = 1_000_000  # resamples x units in memory at a time: about 24 MB for any n and samples


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included, in the unit of the estimated number."""

    low: float
    high: float


def bootstrap_mean_ci(values: ArrayLike, *, confidence: float = 0.95, samples: int = 10_000, seed: int) -> Interval:
    """Compute a confidence interval for the mean of `values` (n,), in their unit, by the percentile bootstrap.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: draw n units (prompts) with replacement,
    take the mean, and read the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of `samples` such means.
    """
    array = checked(values, "values")
    return bootstrap_columns(array[:, None], confidence=confidence, samples=samples, seed=seed)[0]


def percentile_interval(values: Floats, confidence: float = 0.95) -> Interval:
    """Compute the interval that holds the middle `confidence` of the bootstrap's `values` (resamples,)."""
    tail = (1 - checked_confidence(confidence)) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap_columns(columns: Floats, *, confidence: float, samples: int, seed: int) -> list[Interval]:
    """Compute percentile intervals of the column means of `columns` (n, k), all on the same resamples of its rows."""
    checked_confidence(confidence)
    if samples < 1:
        raise ValueError(f"samples is {samples}: at least one resample is needed")
    origin = columns[0]  # relative to the first row, so that a column of equal values has an interval of width 0
    centred = columns - origin
    means = np.concatenate([counts @ centred for counts in resample_counts(len(columns), samples, seed)])
    means = means / len(columns) + origin
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def resample_counts(n: int, samples: int, seed: int | list[int]) -> Iterator[Floats]:
    """Draw resamples and count each of n units in each: yields (chunk, n); every row sums to n."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n)
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        drawn = rng.integers(0, n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def checked(values: ArrayLike, name: str) -> Floats:
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


def checked_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it must lie between 0 and 1")
    return confidence
