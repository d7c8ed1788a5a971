"""Show the report of `rlhfctl bench scale`: a table per axis in a terminal, plain lines in a pipe or a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_FINE = "nothing grows faster than it must"


def table(report: Mapping[str, Any]) -> RenderableType:
    """Draw one table per axis, with the growth of each cost in its last row, and what grows too fast below."""
    parts: list[RenderableType] = []
    for name, axis in report["axes"].items():
        grid = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold", title_justify="left")
        grid.add_column(name)
        costs = list(axis["points"][0]["seconds"])
        for cost in costs:
            grid.add_column(f"{cost}, s", justify="right")
            grid.add_column("processor, s", justify="right")
        grid.add_column("memory, MB", justify="right")
        for point in axis["points"]:
            grid.add_row(point["shown"], *_times(point, costs), f"{point['memory_mb']:.1f}")
        growths = [cell for cost in costs for cell in ("", _growth(axis["growths"][cost]))]
        grid.add_row(Text("grows like", "dim"), *growths, _memory(axis))
        parts += [grid, Text()]
    return Group(
        *parts, *(Text(flag, "yellow") for flag in report["flags"]), *([] if report["flags"] else [Text(_FINE)])
    )


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Write one line per point and one per growth: words and numbers that a script can cut at commas."""
    for name, axis in report["axes"].items():
        for point in axis["points"]:
            costs = list(point["seconds"])
            times = [
                f"{cost} {point['seconds'][cost]:.3f} s, processor {point['processor'][cost]:.3f} s" for cost in costs
            ]
            yield f"{name}: {point['shown'].replace(',', '')}, {', '.join(times)}, memory {point['memory_mb']:.1f} MB"
        grows = ", ".join(f"{cost} {_growth(one)}" for cost, one in axis["growths"].items())
        yield f"{name}: grows like {grows}" + ("" if axis["per_row"] is None else f", memory {_memory(axis)}")
    yield from [f"too fast: {flag}" for flag in report["flags"]] or [_FINE]


def _times(point: Mapping[str, Any], costs: list[str]) -> list[str]:
    return [f"{point[kind][cost]:.2f}" for cost in costs for kind in ("seconds", "processor")]


def _growth(one: Mapping[str, float]) -> str:
    return f"^{one['exponent']:.2f}"


def _memory(axis: Mapping[str, Any]) -> str:
    if "memory" in axis["growths"]:
        return _growth(axis["growths"]["memory"])
    return "" if axis["per_row"] is None else f"{axis['per_row']:.0f} bytes per row"
