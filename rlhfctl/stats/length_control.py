"""Compute a length-controlled win rate: what would be won if policy and reference answered at equal length?

Judges, people among them, tend to prefer the longer response. Reads arrays of one number per prompt; pure functions.

The model is that of AlpacaEval 2 (Dubois et al., Length-Controlled AlpacaEval, 2024, equation 1) without its terms for
single prompts, which one comparison cannot tell from chance:

    logit P(policy wins) = theta + phi tanh((length of the policy's - length of the reference's) / sd of these)

The length-controlled win rate is sigmoid(theta), the model's win rate where both are equally long. A tie counts as half
a win (a fractional response: Papke and Wooldridge, Journal of Applied Econometrics 11, 1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats.paired import win_values
from rlhfctl.stats.resampling import Floats, Interval, checked, percentile_interval, resample_counts

FEWEST_ON_A_SIDE = 5
"""Number of prompts at which the policy's response is not the longer one, and at which it is not the shorter one. With
fewer, the win rate at equal length is an extrapolation."""

_STEPS, _LARGEST_STEP, _LARGEST = 50, 2.0, 15.0  # Newton's method; a coefficient beyond _LARGEST has no maximum
_CLOSE = 1e-10


@dataclass(frozen=True)
class LengthControlled:
    """The length-controlled win rate (0..1) with its 95% interval; or None, and why it cannot be computed."""

    win_rate: float | None
    ci95: Interval | None = None
    length_effect: float | None = None  # phi: above 0, longer responses win more often
    why_not: str = ""


def length_controlled_win_rate(
    differences: ArrayLike, length_differences: ArrayLike, *, seed: int, samples: int = 2_000
) -> LengthControlled:
    """Compute the win rate at equal length from score and length `differences` (n,), policy less reference.

    The interval is a percentile bootstrap over prompts; lengths are standardized once, by all prompts.
    """
    wins = win_values(checked(differences, "differences"))
    lengths = checked(length_differences, "length_differences")
    if wins.size != lengths.size:
        raise ValueError(f"{wins.size} differences and {lengths.size} length differences: one of each per prompt")
    deviation = float(np.std(lengths))
    design = np.tanh(lengths / deviation) if np.any(lengths) and deviation > 0 else np.zeros_like(lengths)
    if why := _why_not(wins, lengths):
        return LengthControlled(None, why_not=why)
    ones = np.ones((1, wins.size))
    theta, phi = fit(wins, design, ones)[0]
    if not np.isfinite(theta):
        return LengthControlled(None, why_not="length alone separates the prompts that are won from those that are not")
    chunks = resample_counts(wins.size, samples, seed)
    found = np.concatenate([fit(wins, design, counts) for counts in chunks])[:, 0]
    rates = _sigmoid(found[np.isfinite(found)])
    return LengthControlled(float(_sigmoid(theta)), percentile_interval(rates), float(phi))


def _why_not(wins: Floats, lengths: Floats) -> str:
    if not np.any(lengths):
        return ""  # equal lengths everywhere: the plain win rate
    if np.sum(lengths <= 0) < FEWEST_ON_A_SIDE:
        return "nearly all of the policy's responses are longer: nothing shows what it would win at equal length"
    if np.sum(lengths >= 0) < FEWEST_ON_A_SIDE:
        return "nearly all of the policy's responses are shorter: nothing shows what it would win at equal length"
    return ""


def fit(wins: Floats, design: Floats, counts: Floats) -> Floats:
    """Fit the logistic regression of each resample by Newton's method; returns theta and phi (resamples, 2).

    `wins` (n,) in 0..1, `design` (n,), `counts` (resamples, n). NaN where no finite maximum exists. Where all of
    `design` is 0 in a resample, phi is 0; where all are won (lost), theta is infinite in theory, so it is set to the
    logit of (n + 0.5) / (n + 1) (of 0.5 / (n + 1)).
    """
    parameters = np.zeros((len(counts), 2))
    total = counts.sum(axis=1)
    share = counts @ wins / total
    flat = (share <= 0) | (share >= 1) | (np.abs(counts @ np.abs(design)) <= 0)
    smoothed = np.where((share <= 0) | (share >= 1), (share * total + 0.5) / (total + 1), share)
    parameters[flat, 0] = np.log(smoothed[flat] / (1 - smoothed[flat]))
    active = ~flat
    for _ in range(_STEPS):
        if not np.any(active):
            break
        now, weights = parameters[active], counts[active]
        expected = _sigmoid(now[:, :1] + now[:, 1:] * design)
        residual = weights * (wins - expected)
        gradient = np.stack([residual.sum(axis=1), residual @ design], axis=1)
        information = weights * expected * (1 - expected)
        first, mixed, second = information.sum(axis=1), information @ design, information @ np.square(design)
        determinant = np.maximum(first * second - np.square(mixed), 1e-300)
        step = np.stack(
            [
                (second * gradient[:, 0] - mixed * gradient[:, 1]) / determinant,
                (first * gradient[:, 1] - mixed * gradient[:, 0]) / determinant,
            ],
            axis=1,
        )
        step = np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        parameters[active] = now + step
        still = np.abs(step).max(axis=1) > _CLOSE
        still &= np.abs(parameters[active]).max(axis=1) <= _LARGEST
        active[np.flatnonzero(active)] = still
    parameters[np.abs(parameters).max(axis=1) > _LARGEST] = np.nan
    return parameters


def _sigmoid(values: Floats) -> Floats:
    exponential = np.exp(-np.abs(values))
    result: Floats = np.where(values >= 0, 1 / (1 + exponential), exponential / (1 + exponential))
    return result
