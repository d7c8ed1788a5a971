"""The tables of `rlhfctl reproduce gao` show every proxy and every statement; its JSON holds all points."""

from __future__ import annotations

import json

from made_seeds import ROWS, planted
from rich.console import Console

from rlhfctl.tools.reproduce.statements import check
from rlhfctl.tools.reproduce.view import to_json, view


def test_fits_and_statements_are_shown() -> None:
    seeds = [planted(seed, penalty=0.4) for seed in range(3)]
    statements = check(seeds)
    screen = Console(width=200, record=True, file=None, quiet=False)
    with screen.capture() as captured:
        for part in view(seeds, statements):
            screen.print(part)
    shown = captured.get()
    for rows in ROWS:
        assert f"best of n, {rows} pairs" in shown and f"RL, {rows} pairs" in shown
    assert all(one.says[:30] in shown for one in statements)
    assert "does not hold" in shown and "holds" in shown


def test_everything_is_in_the_json() -> None:
    seeds = [planted(seed) for seed in range(2)]
    written = json.loads(json.dumps(to_json(seeds, check(seeds))))
    assert [seed["seed"] for seed in written["seeds"]] == [0, 1]
    assert len(written["seeds"][0]["rl"][str(ROWS[0])]["gold"]) == 12
    assert {one["paper"] for one in written["statements"]} == {"Gao", "Coste"}
