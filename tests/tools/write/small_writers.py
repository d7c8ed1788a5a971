"""A writer whose model is a stand-in, for the tests of `label --write`: scripted lines go in, files come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_chats import Recorder

from rlhfctl.labels.items import Item
from rlhfctl.labels.store import Event, open_labels
from rlhfctl.paths import RunPaths
from rlhfctl.tools.chat.conversation import Answer
from rlhfctl.tools.write.book import open_book
from rlhfctl.tools.write.conversation import Prompt
from rlhfctl.tools.write.loop import write_until_the_end
from rlhfctl.tools.write.writer import Writer


def numbered(prompt: Prompt, draw: int, place: int) -> Answer:
    """Answer with the number of the draw."""
    return Answer("ppo", f" draw {draw}", 2, True)


def wrote(
    run: Path,
    *lines: str,
    roles: bool = True,
    to: Path | None = None,
    suggest: Callable[[Prompt, int, int], Answer] = numbered,
    interactive: bool = True,
    **options: Any,
) -> Recorder:
    """Let a person type `lines` in a run folder, with a clock that goes on by a second; return the screen."""
    screen = Recorder(*lines, interactive=interactive)
    seconds = iter(range(10_000))
    with open_book(RunPaths(run), to, "ana") as book:
        writer = Writer(screen, book, suggest, roles, clock=lambda: float(next(seconds)), **options)
        write_until_the_end(writer)
    return screen


def demonstrations(run: Path, name: str = "demonstrations.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


def labels(run: Path) -> list[tuple[Item, Event]]:
    """The labels of a run in order, with their items."""
    if not (run / "labels.sqlite").exists():
        return []
    with open_labels(run / "labels.sqlite") as store:
        items = {item.id: item for item in store.items()}
        return [(items[event.item], event) for event in store.events()]


def compared(run: Path) -> list[tuple[Any, tuple[str, ...], tuple[int, ...] | None]]:
    """What the labels of a run say: the last prompt's text, the texts of the responses, and their ranks."""

    def text(content: Any) -> str:
        return content if isinstance(content, str) else content[-1]["content"]

    return [(text(item.prompt), tuple(text(one) for one in item.responses), event.ranks) for item, event in labels(run)]
