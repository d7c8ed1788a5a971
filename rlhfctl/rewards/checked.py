"""Check what a user's scorer returns: one number or None per completion, whether it is a function or a server.

`Checked` is the base of FunctionReward (function.py) and ServerReward (server.py). None means that the scorer does not
score this row. Reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

from rlhfctl.errors import RewardFailed
from rlhfctl.events import transcript
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.rewards.episode import Episode

Say = Callable[[str], None]
SHOWN = 60  # characters of a text in a message
MEND = "correct it and give the same command again: it resumes from the last complete checkpoint"


class Unscored:
    """Warn once about rows for which every reward function returned None."""

    def __init__(self, say: Say) -> None:
        self.say, self.warned = say, False

    def report(self, count: int, total: int) -> None:
        """Warn if `count` of the `total` rows of a batch have no score."""
        if count and not self.warned:
            self.warned = True
            self.say(f"{count} of {total} responses are scored by no reward function (None): they count as 0")


class Checked:
    """Call a scorer and check its contract: one number or None per completion, finite if `finite`.

    RewardFailed if it breaks the contract. `batch_size`: the most completions per call (None: all). `spec`: its name in
    the recipe. `waits`: whether it mostly waits for others, so that several may be asked at once. `processes`: those
    that give it the same episodes.
    """

    what = "the reward function"
    waits = False

    def __init__(
        self,
        spec: str,
        *,
        finite: bool = True,
        batch_size: int | None = None,
        say: Say = lambda sentence: None,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.spec = spec
        self.batch_size = batch_size
        self.unscored = Unscored(say)
        self.finite = finite

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        """Score each episode; None of the scorer counts as 0."""
        values = self.optional(episodes)
        self.unscored.report(sum(value is None for value in values), len(values))
        return [0.0 if value is None else value for value in values]

    def optional(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Score each episode; None if it does not score the row. The first process asks, and tells the others."""
        values, said = self.processes.from_first(lambda: (self.here(episodes), self.said()))
        self.hear(said)
        return values

    def said(self) -> Any:
        """Return what the scorer noted beside the scores in this process, for the others."""
        return None

    def hear(self, said: Any) -> None:
        """Take what the scorer noted in the first process."""

    def here(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Score each episode in this process, by calls of at most `batch_size` completions."""
        if self.batch_size is None:
            return self._checked(episodes)
        return [value for batch in self._batches(episodes) for value in self._checked(batch)]

    def _batches(self, episodes: Sequence[Episode]) -> list[Sequence[Episode]]:
        size = self.batch_size or max(1, len(episodes))
        return [episodes[start : start + size] for start in range(0, len(episodes), size)]

    def _checked(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Call the scorer once and check what it returns; RewardFailed if it breaks its contract."""
        values = self._called(episodes)
        if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
            raise self._failed(f"returned {values!r}, not a list", "return a list with one float for each completion")
        values = list(values)
        if len(values) != len(episodes):
            raise self._failed(
                f"returned {len(values)} numbers for {len(episodes)} completions",
                "return a list with one float for each completion",
            )
        for index, value in enumerate(values):
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and (not number or (self.finite and not math.isfinite(value))):
                raise self._failed(f"returned {value!r} for {shown(episodes[index])}", "return finite floats, or None")
        return [None if value is None else float(value) for value in values]

    def _called(self, episodes: Sequence[Episode]) -> Any:
        """Ask for the scores of some episodes at once; unchecked."""
        raise NotImplementedError

    def _failed(self, what: str, fix: str) -> RewardFailed:
        return RewardFailed(f"{self.what} {what}", where=self.spec, fix=fix)


def columns_of(episodes: Sequence[Episode], own: set[str]) -> dict[str, list[Any]]:
    """Return the columns of the episodes' rows, each as a list with one value per episode, without those in `own`.

    A row that lacks a column has None there.
    """
    have = sorted({key for episode in episodes for key in episode.row} - own)
    return {name: [episode.row.get(name) for episode in episodes] for name in have}


def shown(episode: Episode) -> str:
    """Describe an episode in a message: the beginnings of its texts."""
    prompt, completion = (transcript(text)[:SHOWN] for text in (episode.prompt, episode.completion))
    return f"completion {completion!r} to prompt {prompt!r}"
