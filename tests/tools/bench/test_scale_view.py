"""The report of `bench scale`: tables in a terminal, lines in a pipe."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from rlhfctl.tools.bench.scale import Point, judged
from rlhfctl.tools.bench.scale_view import lines, table


def report(power: float) -> dict[str, Any]:
    rows = [
        Point(n, f"{n:,} prompts", {"read": 2.5}, {"read": (n / 30_000) ** power}, 10 + n / 10_000)
        for n in (30_000, 60_000)
    ]
    batch = [Point(n, f"{n} episodes", {"update": 1.5}, {"update": n / 8}, n / 2, n) for n in (8, 16)]
    found = [judged("rows", "rows", rows), judged("batch", "episodes", batch)]
    return {"axes": {one.axis: asdict(one) for one in found}, "flags": [flag for one in found for flag in one.flags]}


def test_lines_hold_each_figure() -> None:
    assert list(lines(report(1.0))) == [
        "rows: 30000 prompts, read 2.500 s, processor 1.000 s, memory 13.0 MB",
        "rows: 60000 prompts, read 2.500 s, processor 2.000 s, memory 16.0 MB",
        "rows: grows like read ^1.00, memory 100 bytes per row",
        "batch: 8 episodes, update 1.500 s, processor 1.000 s, memory 4.0 MB",
        "batch: 16 episodes, update 1.500 s, processor 2.000 s, memory 8.0 MB",
        "batch: grows like update ^1.00, memory ^1.00",
        "nothing grows faster than it must",
    ]
    assert list(lines(report(2.0)))[-1].startswith("too fast: rows: read grows like rows^2.00")


def test_tables_hold_each_figure() -> None:
    screen = Console(width=110, record=True, file=None)
    with screen.capture() as captured:
        screen.print(table(report(2.0)))
    text = captured.get()
    for words in ("30,000 prompts", "read, s", "processor, s", "4.00", "^2.00", "100 bytes per row", "16 episodes"):
        assert words in text
    assert "rows: read grows like rows^2.00" in text and "nothing grows" not in text
