"""Normalize scores by the mean and deviation of all scores so far, and clip them.

TRL up to 0.11 has the same two steps in the same order (`use_score_scaling`, `use_score_norm`, `score_clip`). Pure
functions; the moments of a run are in carried.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from rlhfctl.recipe.schema import Ppo

_SAME = 1e-8  # scores whose deviation is less than this part of their mean do not differ


@dataclass(frozen=True)
class Moments:
    """The count, mean and sum of squared deviations of the scores so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_scores(self, scores: Tensor) -> Moments:
        """Add the scores (B,) of a batch (Chan, Golub and LeVeque 1979: the parallel form of Welford's update)."""
        scores = scores.double()
        own, mean = len(scores), float(scores.mean())
        squares, count = float(((scores - mean) ** 2).sum()), self.count + own
        gap = mean - self.mean
        return Moments(count, self.mean + gap * own / count, self.squares + squares + gap**2 * self.count * own / count)

    @property
    def deviation(self) -> float:
        """Compute the standard deviation, with n - 1 in the denominator; 1 where no two scores differ."""
        deviation = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return deviation if deviation > _SAME * max(1.0, abs(self.mean)) else 1.0


NO_SCORES = Moments()


def scaled_scores(raw: Tensor, moments: Moments, section: Ppo) -> Tensor:
    """Normalize scores (B,) by the moments of all scores so far, and clip them, as the section asks."""
    scores = raw
    if section.normalize_scores is not None:
        centre = moments.mean if section.normalize_scores == "running" else 0.0
        scores = (scores - centre) / moments.deviation
    if section.score_clip is not None:
        limits = section.score_clip
        low, high = limits if isinstance(limits, list) else (-limits, limits)
        scores = scores.clamp(low, high)
    return scores
