"""Combine several scorers into one: their weighted sum. Scorers that wait for others are asked at the same time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlhfctl.models.processes import ALONE
from rlhfctl.rewards.checked import Checked, Say, Unscored
from rlhfctl.rewards.episode import Episode, RewardFunction


class WeightedReward:
    """Compute sum_i weight_i x scorer_i. Each scorer reads every episode; a function may skip a row by None.

    `parts`: the scores of each scorer in the last call, before weighting. A row that no scorer scores counts as 0, and
    a warning says so once. Servers and `async` functions are asked at once; the others are called in order meanwhile.
    """

    def __init__(self, scorers: Mapping[str, tuple[RewardFunction, float]], say: Say = lambda sentence: None) -> None:
        self.scorers = dict(scorers)
        self.parts: dict[str, list[float | None]] = {}
        self.unscored = Unscored(say)

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        self.parts = self._scored(episodes)
        rows = list(zip(*self.parts.values(), strict=True))
        self.unscored.report(sum(all(score is None for score in row) for row in rows), len(rows))
        weights = [weight for _, weight in self.scorers.values()]
        return [
            math.fsum(weight * score for weight, score in zip(weights, row, strict=True) if score is not None)
            for row in rows
        ]

    def _scored(self, episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
        """Ask every scorer; the first process asks those that wait for others, and tells the other processes."""
        waiting = {
            name: scorer for name, (scorer, _) in self.scorers.items() if isinstance(scorer, Checked) and scorer.waits
        }
        processes = next((scorer.processes for scorer in waiting.values()), ALONE)
        with ThreadPoolExecutor(max(1, len(waiting)), thread_name_prefix="scorer") as pool:
            asked = {name: pool.submit(one.here, episodes) for name, one in waiting.items() if processes.first}
            found = {
                name: _scores(scorer, episodes) for name, (scorer, _) in self.scorers.items() if name not in waiting
            }
            told = processes.from_first(
                lambda: {name: (asked[name].result(), scorer.said()) for name, scorer in waiting.items()}
            )
        for name, (values, said) in told.items():
            found[name] = values
            waiting[name].hear(said)
        return {name: found[name] for name in self.scorers}

    @property
    def logged(self) -> dict[str, list[float]]:
        """The metrics that the functions among the scorers logged in the last call."""
        return _joined(self.scorers, "logged")

    @property
    def extras(self) -> dict[str, list[Any]]:
        """The columns that the functions among the scorers logged in the last call."""
        return _joined(self.scorers, "extras")


def _scores(scorer: RewardFunction, episodes: Sequence[Episode]) -> list[float | None]:
    return scorer.optional(episodes) if isinstance(scorer, Checked) else list(scorer(episodes))


def _joined(scorers: Mapping[str, tuple[RewardFunction, float]], what: str) -> dict[str, list[Any]]:
    """Join what the scorers logged. A metric of several functions has all their values, of a column the last counts."""
    found: dict[str, list[Any]] = {}
    for scorer, _ in scorers.values():
        for name, values in getattr(scorer, what, {}).items():
            found[name] = [*found.get(name, []), *values] if what == "logged" else values
    return found
