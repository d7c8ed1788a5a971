"""Compute intervals for a mean over seeds and prompts: what would other seeds and other prompts have given?

Reads one number per seed and prompt (the mean over that prompt's samples); reads and writes no files. Pure functions on
NumPy arrays; random ones take a seed. Leaves out intervals for one seed (paired.py).

Every seed answers the same prompts. Seeds and prompts are crossed, not nested: a hard prompt is hard for every seed.
The usual hierarchical bootstrap (draw seeds, then prompts anew within each drawn seed) takes such a common effect for
noise that averages out over seeds. Owen, The pigeonhole bootstrap (Annals of Applied Statistics 1, 2007) draws prompts
once for all seeds instead. No bootstrap helps where seeds are few: three numbers drawn with replacement spread too
little (by the factor (S - 1) / S in the variance) and have no tails. Radiology has the same design (few readers, many
cases, both random), and there the readers' part follows Student's t: Hillis, A comparison of denominator degrees of
freedom methods for multiple observer ROC analysis (Statistics in Medicine 26, 2007).

`hierarchical_bootstrap` therefore draws seeds from Student's t with S - 1 degrees of freedom, and prompts with
replacement, once for all seeds. Share of 95% intervals that held the true mean, out of 1,000 draws of normal data with
200 prompts; a, b and e are the standard deviations of seeds, prompts and residual:

    seeds  a, b, e        this interval  pigeonhole bootstrap  usual hierarchical bootstrap
        3  0.0, 1.0, 1.0          0.98                  0.98                          0.88
        3  0.1, 1.0, 1.0          0.98                  0.95                          0.85
        3  0.3, 1.0, 1.0          0.96                  0.83                          0.76
        5  0.0, 1.0, 1.0          0.95                  0.96                          0.82
        5  0.1, 1.0, 1.0          0.96                  0.96                          0.82
        5  0.3, 1.0, 1.0          0.94                  0.87                          0.81

Two seeds cover as well (0.97 to 0.98), with intervals three times as wide as those of three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats.paired import MIN_DECIDED_PROMPTS, Verdict, paired_differences
from rlhfctl.stats.resampling import Floats, Interval, checked_confidence, percentile_interval, resample_counts

_PROMPTS = 1  # joins the seed of the draws of prompts, so that these are independent of the draws of seeds


@dataclass(frozen=True)
class SeededComparison:
    """The comparison of policy and reference over `seeds` seeds on the same `n` prompts.

    `delta` is in the judge's unit, `win_rate` in 0..1. `ties`: prompts at which no seed's difference decides.
    """

    seeds: int
    n: int
    delta: float
    delta_ci95: Interval
    win_rate: float
    win_rate_ci95: Interval
    ties: int


def compare_over_seeds(
    policy: ArrayLike, reference: ArrayLike, *, seed: int, samples: int = 10_000
) -> SeededComparison:
    """Compare `policy` (S, n) with `reference` (S, n): one value per seed and prompt each.

    Both 95% intervals are for new seeds and new prompts, from the same draws. A tie at a seed and prompt counts half in
    the win rate.
    """
    policy_rows, reference_rows = np.atleast_2d(policy), np.atleast_2d(reference)
    if policy_rows.shape != reference_rows.shape:
        raise ValueError(f"policy has the shape {policy_rows.shape}, reference {reference_rows.shape}: one value each")
    differences = np.stack([paired_differences(a, b) for a, b in zip(policy_rows, reference_rows, strict=True)])
    wins = (np.sign(differences) + 1) / 2
    low_high = hierarchical_bootstrap(wins, seed=seed, samples=samples)
    return SeededComparison(
        seeds=len(differences),
        n=differences.shape[1],
        delta=_mean(differences),
        delta_ci95=hierarchical_bootstrap(differences, seed=seed, samples=samples),
        win_rate=_mean(wins),
        win_rate_ci95=Interval(max(0.0, low_high.low), min(1.0, low_high.high)),
        ties=int(np.count_nonzero(~differences.any(axis=0))),
    )


def verdict_over_seeds(c: SeededComparison) -> Verdict:
    """Decide one comparison over seeds by its 95% intervals, by the same rule as one seed's (`paired.verdict`)."""
    if c.n - c.ties < MIN_DECIDED_PROMPTS:
        return "undecided"
    if c.delta_ci95.low > 0 and c.win_rate_ci95.low > 0.5:
        return "better"
    if c.delta_ci95.high < 0 and c.win_rate_ci95.high < 0.5:
        return "worse"
    return "undecided"


def hierarchical_bootstrap(
    values: ArrayLike, *, confidence: float = 0.95, samples: int = 10_000, seed: int
) -> Interval:
    """Compute a confidence interval for the mean of `values` (S, n) over new seeds and new prompts, in their unit.

    Model: value = mean + seed + prompt + residual, all random. The interval holds the (1 - confidence) / 2 and
    (1 + confidence) / 2 quantiles of `samples` draws of

        mean + t sqrt(MS_seeds / S n) + (mean of n prompts drawn with replacement - mean) r
        r = sqrt((1 - MS_residual / MS_prompts) n / (n - 1)), or 0 where this is not a number

    with the mean squares of `mean_squares`, and t from Student's distribution with S - 1 degrees of freedom. MS_seeds
    holds the residual's share of the variance already: r takes it out of the prompts' part, so that it counts once, and
    makes up for what a bootstrap of n prompts lacks in variance.
    """
    array = _checked(values)
    checked_confidence(confidence)
    if samples < 1:
        raise ValueError(f"samples is {samples}: at least one draw is needed")
    n_seeds, n = array.shape
    of_seeds, of_prompts, of_residual = mean_squares(array)
    from scipy.special import stdtrit  # Student's quantiles; imported late, because it is large

    grid = stdtrit(n_seeds - 1, (np.arange(samples) + 0.5) / samples)  # evenly spread: tails without luck
    draws = np.random.default_rng(seed).permutation(grid) * np.sqrt(of_seeds / array.size)
    if of_prompts > of_residual:
        by_prompt = array.mean(axis=0)
        deviations = (by_prompt - by_prompt.mean()) * np.sqrt((1 - of_residual / of_prompts) * n / (n - 1))
        counts = resample_counts(n, samples, [seed, _PROMPTS])
        draws += np.concatenate([chunk @ deviations for chunk in counts]) / n
    around = percentile_interval(draws, confidence)
    mean = _mean(array)
    return Interval(mean + around.low, mean + around.high)


def mean_squares(values: ArrayLike) -> tuple[float, float, float]:
    """Compute the mean squares of seeds, prompts and residual of `values` (S, n), without replication.

    Two-way analysis of variance: Scheffé, The Analysis of Variance (1959), section 7.4. With one prompt there is no
    residual and no spread of prompts: 0.
    """
    array = _checked(values)
    n_seeds, n = array.shape
    centred = array - _mean(array)
    by_seed, by_prompt = centred.mean(axis=1), centred.mean(axis=0)
    residual = centred - by_seed[:, None] - by_prompt[None, :]
    return (
        float(n * (by_seed @ by_seed) / (n_seeds - 1)),
        float(n_seeds * (by_prompt @ by_prompt) / max(1, n - 1)),
        float(np.sum(residual * residual) / max(1, (n_seeds - 1) * (n - 1))),
    )


def _checked(values: ArrayLike) -> Floats:
    """Convert `values` to float64 (S, n); raise ValueError unless S >= 2, n >= 1 and all are finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"values have the shape {array.shape}: two seeds or more by one prompt or more are needed")
    if not np.isfinite(array).all():
        raise ValueError(f"{int(np.count_nonzero(~np.isfinite(array)))} values are not finite")
    return array


def _mean(array: Floats) -> float:
    """Compute the mean relative to the first value: exact if all are equal."""
    origin = array.flat[0]
    return float(origin + np.mean(array - origin))
