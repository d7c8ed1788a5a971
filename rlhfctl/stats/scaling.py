"""Fit the curves of reward over-optimization: the true score against the distance from the reference.

Gao, Schulman and Hilton, Scaling Laws for Reward Model Overoptimization (2022), equations 1 and 2. With d the square
root of the KL from the reference, in nats per response, and R(0) = 0 at the reference:

    best of n:               R(d) = d (alpha - beta d)
    reinforcement learning:  R(d) = d (alpha - beta log d)

Both are linear in alpha and beta, so least squares has one solution. Pure functions on arrays; reads and writes no
files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats.resampling import Floats, Interval, checked, checked_confidence

Form = Literal["best_of_n", "rl"]


@dataclass(frozen=True)
class Fit:
    """A fitted curve: the gain per unit of distance at first (`alpha`), how it declines (`beta`), and R squared."""

    form: Form
    alpha: float
    beta: float
    r_squared: float

    def at(self, distance: ArrayLike) -> Floats:
        """Compute the curve at distances (n,)."""
        found: Floats = _columns(self.form, np.asarray(distance, dtype=np.float64)) @ np.array([self.alpha, self.beta])
        return found

    @property
    def peak(self) -> float | None:
        """The distance at which the curve is highest; None where it does not turn down."""
        if self.beta <= 0 or (self.form == "best_of_n" and self.alpha <= 0):
            return None
        return self.alpha / (2 * self.beta) if self.form == "best_of_n" else math.exp(self.alpha / self.beta - 1)


def fit(form: Form, distance: ArrayLike, score: ArrayLike) -> Fit:
    """Fit one form to points (n,): `distance` = sqrt(KL), above 0, and `score` less that of the reference.

    R squared compares with the mean of the scores. Raises ValueError for fewer than three points.
    """
    x, y = checked(distance, "distance"), checked(score, "score")
    if x.size != y.size or x.size < 3:
        raise ValueError(f"{x.size} distances and {y.size} scores: at least three points are needed, one of each")
    if np.any(x <= 0):
        raise ValueError("every distance must be above 0: the reference itself is no point of the curve")
    columns = _columns(form, x)
    (alpha, beta), *_ = np.linalg.lstsq(columns, y, rcond=None)
    residual = y - columns @ np.array([alpha, beta])
    spread = float(np.sum(np.square(y - y.mean())))
    r_squared = 1 - float(np.sum(np.square(residual))) / spread if spread > 0 else math.nan
    return Fit(form, float(alpha), float(beta), r_squared)


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, Interval]:
    """Compute the mean of one number per seed with its Student t interval; ValueError for fewer than two seeds.

    A bootstrap of so few values is too narrow: with five seeds the percentile interval of 95% covers in 83% of cases.
    """
    from scipy.stats import t

    array = checked(values, "values")
    if array.size < 2:
        raise ValueError(f"{array.size} seed: an interval over seeds needs at least two")
    half = float(t.ppf(0.5 + checked_confidence(confidence) / 2, array.size - 1) * array.std(ddof=1)) / math.sqrt(
        array.size
    )
    mean = float(array.mean())
    return mean, Interval(mean - half, mean + half)


def _columns(form: Form, distance: Floats) -> Floats:
    """Return the two columns (n, 2) whose sum, weighted by alpha and beta, is the curve."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decline = np.square(distance) if form == "best_of_n" else distance * np.log(distance)
    return np.stack([distance, -np.where(distance > 0, decline, 0.0)], axis=1)
