"""Several scorers as one: their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhfctl.rewards import Episode, Reward


class WeightedReward:
    """sum_i weight_i x scorer_i; each scorer sees every episode."""

    def __init__(self, scorers: Mapping[str, tuple[Reward, float]]) -> None:
        self.scorers = dict(scorers)

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        total = [0.0] * len(episodes)
        for scorer, weight in self.scorers.values():
            total = [so_far + weight * score for so_far, score in zip(total, scorer(episodes), strict=True)]
        return total
