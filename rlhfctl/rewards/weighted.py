"""Combine several scorers into one: their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.rewards.function import FunctionReward, Say, Unscored


class WeightedReward:
    """Compute sum_i weight_i x scorer_i. Each scorer reads every episode; a function may skip a row by None.

    `parts`: the scores of each scorer in the last call, before weighting. A row that no scorer scores counts as 0, and
    a warning says so once.
    """

    def __init__(self, scorers: Mapping[str, tuple[RewardFunction, float]], say: Say = lambda sentence: None) -> None:
        self.scorers = dict(scorers)
        self.parts: dict[str, list[float | None]] = {}
        self.unscored = Unscored(say)

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        self.parts = {
            name: scorer.optional(episodes) if isinstance(scorer, FunctionReward) else list(scorer(episodes))
            for name, (scorer, _) in self.scorers.items()
        }
        rows = list(zip(*self.parts.values(), strict=True))
        self.unscored.report(sum(all(score is None for score in row) for row in rows), len(rows))
        weights = [weight for _, weight in self.scorers.values()]
        return [
            math.fsum(weight * score for weight, score in zip(weights, row, strict=True) if score is not None)
            for row in rows
        ]
