"""Build the rich view of a ranking: strengths with intervals, who beats whom, and corrected p-values.

Reads the JSON of `rlhfctl rank`; prints nothing itself. Names of runs and judges are never read as markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl.dashboard.text import counted, fixed, visible
from rlhfctl.verdict import share

_COLUMNS = 8  # of a matrix, so that it fits 80 characters
_SURE = 0.05  # corrected p below which a pair's difference is shown in colour
_NOTES = """\
strength: Bradley-Terry log-odds, mean 0, with a 95% interval over prompts;
a difference of 1 wins 73% of the prompts, one of 2 wins 88%
in the matrix: how often the row beats the column (a tie counts half), below it
p by the exact sign test, corrected for {pairs} (Holm)"""


def ranking_view(ranking: Mapping[str, Any]) -> RenderableType:
    """Build the list of policies and references, strongest first, then the matrix of win rates, then notes."""
    places = {entry["name"]: str(place) for place, entry in enumerate(ranking["ranking"], start=1)}
    title = f"by {visible(str(ranking['judge']))}, on {counted(ranking['prompts'], 'prompt')}"
    pairs = counted(len(ranking["pairs"]), "pair")
    parts: list[RenderableType] = [Text(title, "bold"), Text(), _strengths(ranking, places)]
    for start in range(0, len(places), _COLUMNS):
        parts += [Text(), _matrix(ranking, range(start, min(start + _COLUMNS, len(places))))]
    parts.append(Text(_NOTES.format(pairs=pairs), "dim"))
    return Group(*parts, *(Text(visible(note), "yellow") for note in ranking["notes"]))


def _strengths(ranking: Mapping[str, Any], places: Mapping[str, str]) -> Table:
    table = _table()
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    table.add_column("strength", justify="right", no_wrap=True)
    for entry in ranking["ranking"]:
        low, high = entry["strength_ci95"]
        strength = f"{fixed(entry['strength'], 2, sign=True)} [{fixed(low, 2)}, {fixed(high, 2)}]"
        table.add_row(places[entry["name"]], Text(visible(entry["name"])), strength)
    return table


def _matrix(ranking: Mapping[str, Any], columns: range) -> Table:
    """Build some columns of the matrix: how often the row beats the column, and below it the corrected p."""
    table = _table()
    table.add_column("", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(str(column + 1), justify="right", no_wrap=True)
    for row, (rates, p_values) in enumerate(zip(ranking["win_rates"], ranking["p_adjusted"], strict=True), start=1):
        table.add_row(Text(str(row)), *(_cell(rates[column], p_values[column]) for column in columns))
    return table


def _cell(rate: float | None, p_value: float | None) -> Text:
    if rate is None or p_value is None:  # itself, or a pair that did not meet
        return Text("-", "dim")
    style = ("green" if rate > 0.5 else "red") if p_value < _SURE else ""
    below = "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return Text(share(rate), style).append(f"\n{below}", "dim")


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
