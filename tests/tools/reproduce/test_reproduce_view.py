"""The tables of `rlhfctl reproduce gao` show every proxy and every statement at 80 columns; its JSON holds all."""

from __future__ import annotations

import json

import pytest
from made_seeds import ROWS, planted
from rich.console import Console

from rlhfctl.report.page import html_of
from rlhfctl.report.reproduction import page_of_reproduction
from rlhfctl.tools.reproduce.experiment import Sizes
from rlhfctl.tools.reproduce.statements import check
from rlhfctl.tools.reproduce.view import to_json, view


def shown(width: int, **changes: float) -> str:
    seeds = [planted(seed, **changes) for seed in range(3)]
    screen = Console(width=width)
    with screen.capture() as captured:
        for part in view(seeds, check(seeds)):
            screen.print(part)
    return captured.get()


@pytest.mark.parametrize("width", [80, 120])
def test_fits_and_statements_are_shown_in_full(width: int) -> None:
    text = shown(width, penalty=0.6)
    assert "…" not in text
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    for rows in ROWS:
        assert sum(line.startswith(f"{rows} ") for line in lines) == 2
    assert "Gao 5: did not hold" in text and "Gao 1: held" in text
    assert "did not hold: Gao 5" in lines
    assert any(line.startswith("cannot tell: ") for line in lines)


def test_a_fit_that_does_not_turn_down_has_no_peak() -> None:
    rising = [line for line in shown(120, best_of_n=5.0).splitlines() if line.startswith("100 ")]
    assert rising[0].rstrip().endswith("none of 3") and rising[1].rstrip().endswith("(3 of 3)")


def test_everything_is_in_the_json() -> None:
    seeds = [planted(seed) for seed in range(2)]
    written = json.loads(json.dumps(to_json(seeds, check(seeds), Sizes())))
    assert [seed["seed"] for seed in written["seeds"]] == [0, 1]
    assert len(written["seeds"][0]["rl"][str(ROWS[0])]["gold"]) == 12
    assert {one["name"].split()[0] for one in written["statements"]} == {"premise", "Gao", "Coste"}
    assert written["sizes"]["rows"] == list(Sizes().rows)
    (low, high) = written["statements"][0]["measures"][0]["ci95"]
    assert low < written["statements"][0]["measures"][0]["value"] < high


def test_the_page_is_made_from_the_json() -> None:
    seeds = [planted(seed, penalty=0.6) for seed in range(3)]
    page = page_of_reproduction(json.loads(json.dumps(to_json(seeds, check(seeds), Sizes()))))
    assert page.headline.startswith("of the 5 statements of Gao et al., ")
    assert "did not hold" in html_of(page, "runs/gao") and "Gao 5" in html_of(page, "runs/gao")
