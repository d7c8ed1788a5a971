"""Compute effect sizes, and the standard error of a mean: how large a difference is, and how well a mean is known.

Reads arrays of one number per prompt; pure functions. An effect size is in standard deviations. A p-value says whether
there is a difference, an effect size how large it is: with enough prompts a tiny difference is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats.paired import paired_differences
from rlhfctl.stats.resampling import Floats, Interval, checked, percentile_interval, resample_counts


@dataclass(frozen=True)
class EffectSize:
    """An effect size with its 95% interval, in standard deviations."""

    value: float
    ci95: Interval


def paired_effect_size(
    policy: ArrayLike, reference: ArrayLike, *, seed: int, samples: int = 10_000
) -> EffectSize | None:
    """Compute Cohen's d_z: the mean difference in standard deviations of the differences; both arrays (n,).

    d_z = mean(d) / sd(d), d = policy - reference per prompt, sd with n - 1. Cohen, Statistical Power Analysis for the
    Behavioral Sciences (1988), section 2.3.5; Lakens, Frontiers in Psychology 4 (2013), equation 6. The interval is a
    percentile bootstrap over prompts. Returns None where all differences are equal, or there is only one.
    """
    differences = paired_differences(policy, reference)
    value = _standardized(differences, np.ones((1, differences.size)))[0]
    if not np.isfinite(value):
        return None
    chunks = resample_counts(differences.size, samples, seed)
    found = np.concatenate([_standardized(differences, counts) for counts in chunks])
    return EffectSize(float(value), percentile_interval(found[np.isfinite(found)]))


def reference_deviations(policy: ArrayLike, reference: ArrayLike) -> float | None:
    """Compute the mean difference in standard deviations of the reference's values (n,): Glass's delta.

    Glass, Educational Researcher 5 (1976). Returns None where all values of the reference are equal.
    """
    differences, values = paired_differences(policy, reference), checked(reference, "reference")
    deviation = float(np.std(values, ddof=1)) if values.size > 1 else 0.0
    return float(np.mean(differences)) / deviation if deviation > 0 else None


def standard_error(values: ArrayLike) -> float:
    """Compute the standard error of the mean of `values` (n,): sd / sqrt(n), sd with n - 1; 0 for a single value."""
    array = checked(values, "values")
    return float(np.std(array, ddof=1) / np.sqrt(array.size)) if array.size > 1 else 0.0


def _standardized(differences: Floats, counts: Floats) -> Floats:
    """Compute d_z of each resample: `differences` (n,), `counts` (resamples, n); NaN where all are equal."""
    n = differences.size
    if n < 2:
        return np.full(len(counts), np.nan)
    origin = differences[0]
    centred = differences - origin  # exact zeros where all are equal
    means = counts @ centred / n
    squares = counts @ np.square(centred) / n
    variances = (squares - np.square(means)) * n / (n - 1)
    smallest = 1e-12 * max(float(np.max(np.abs(centred))) ** 2, np.finfo(np.float64).tiny)
    safe = np.where(variances > smallest, variances, np.nan)
    deviations: Floats = (means + origin) / np.sqrt(safe)
    return deviations
