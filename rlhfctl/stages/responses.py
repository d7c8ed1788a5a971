"""Draw several different responses to each prompt, from one model or from several in turn, and make items of them.

A response that is empty or equals another one of its prompt is drawn again, a few times. Everything that was drawn is
kept in blocks, so that an attempt that was killed goes on, and ends with the same responses. The sample stage and
`rlhfctl sample` draw with this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl.data.types import Row
from rlhfctl.generation.generator import Generator, Sampling
from rlhfctl.labels.items import FEWEST, Item, make_item
from rlhfctl.labels.texts import turns_of
from rlhfctl.rewards.episode import make_episode
from rlhfctl.stages.blocks import Blocks
from rlhfctl.stages.loader import Base

TRIES = 4  # draws of a response that is empty or equals another one of its prompt, the first included


@dataclass(frozen=True)
class Writer:
    """A model that writes responses, the ids of all prompts by its tokenizer, and how it samples.

    `origin` is recorded with what it wrote, and never shown to annotators.
    """

    origin: str
    base: Base
    prompts: Sequence[Sequence[int]]
    sampling: Sampling


@dataclass
class Drawing:
    """Draw `responses` responses to each of `rows`; response j to prompt i is written by the models in turn.

    Blocks are kept in `folder`. `report` gets the number of responses so far.
    """

    responses: int
    writers: Sequence[Writer]
    rows: Sequence[Row]
    generate: Generator
    folder: Path
    report: Callable[[int], None]

    @property
    def total(self) -> int:
        """The number of responses, if all of a prompt differ."""
        return len(self.rows) * self.responses

    @property
    def done(self) -> int | None:
        """The number of responses that an attempt before has drawn in its first pass; None for a new attempt."""
        found = sum(Blocks(folder, []).size() for folder in sorted(self.folder.glob("try-1-*")))
        return min(found, self.total) or None

    def draw(self) -> list[dict[int, tuple[Any, str]]]:
        """Return, per prompt, the response (text or messages) and its origin by its number."""
        found: list[dict[int, tuple[Any, str]]] = [{} for _ in self.rows]
        for attempt in range(1, TRIES + 1):
            missing = [
                (index, number)
                for number in range(self.responses)
                for index in range(len(self.rows))
                if number not in found[index]
            ]
            drawn: dict[tuple[int, int], tuple[Any, str]] = {}
            for place, writer in enumerate(self.writers):
                own = [one for one in missing if sum(one) % len(self.writers) == place]
                drawn |= self._draw(attempt, place, writer, own, self.total - len(missing) + len(drawn))
            # In the order of the places, so that who wrote the first of two equal responses depends on nothing else.
            for index, number in missing:
                response, origin = drawn[index, number]
                if any(turn.text.strip() for turn in turns_of(response)) and response not in [
                    other for other, _ in found[index].values()
                ]:
                    found[index][number] = response, origin
            if all(len(one) == self.responses for one in found):
                break
        return found

    def _draw(
        self, attempt: int, place: int, writer: Writer, own: Sequence[tuple[int, int]], before: int
    ) -> dict[tuple[int, int], tuple[Any, str]]:
        """Draw the responses of one model at its places; `before` responses are there already."""
        # A later attempt draws with other numbers: that of the response plus K for each attempt.
        numbered = [(index, number + (attempt - 1) * self.responses) for index, number in own]
        blocks = Blocks(self.folder / f"try-{attempt}-{place}", numbered)

        def report(step: int) -> None:
            self.report(min(before + step, self.total))

        tokenizer = writer.base.tokenizer
        what = "sampling responses" if attempt == 1 else "sampling again what was equal or empty"
        found = blocks.draw(
            writer.base.model, tokenizer, writer.prompts, writer.sampling, self.generate, report, what=what
        )
        made: dict[tuple[int, int], tuple[Any, str]] = {}
        for (index, number), (ids, _) in zip(own, found, strict=True):
            prompt, stops = writer.prompts[index], writer.sampling.stop_strings
            episode = make_episode(tokenizer, self.rows[index], prompt, ids, stops)
            made[index, number] = episode.completion, writer.origin
        return made


def items_of(
    rows: Sequence[Row], drawn: Sequence[Mapping[int, tuple[Any, str]]], note: Callable[[str], None]
) -> Iterator[Item]:
    """Make the items; report prompts with too few different responses."""
    most = max(map(len, drawn), default=0)
    fewer: Counter[int] = Counter(len(found) for found in drawn if len(found) < most)
    for row, found in zip(rows, drawn, strict=True):
        if len(found) >= FEWEST:
            both = [found[number] for number in sorted(found)]
            responses, origins = [one for one, _ in both], [origin for _, origin in both]
            yield make_item(row["prompt"], responses, origins, tools=row.get("tools"))
    for count, times in sorted(fewer.items()):
        left_out = " and are left out" if count < FEWEST else ""
        note(f"{times} prompts have {count} different responses{left_out}: further draws were equal or empty")
