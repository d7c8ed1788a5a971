"""The view and the JSON of `rlhfctl reproduce christiano` hold every budget, order and statement."""

from __future__ import annotations

import io
import json

import pytest
from made_queries import seed
from rich.console import Console

from rlhfctl.tools.reproduce import query_view
from rlhfctl.tools.reproduce.queries import Sizes
from rlhfctl.tools.reproduce.query_outcomes import check


def test_the_view_and_the_json_hold_every_budget() -> None:
    seeds = [seed(n, [0.5, 0.6, 0.7], [0.5, 0.7, 0.8 + 0.01 * n]) for n in range(2)]
    outcomes = check(seeds)
    console = Console(width=80, file=io.StringIO())
    for part in query_view.view(seeds, outcomes):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for piece in ("0.600 +-0.000", "0.100 +-0.000", "active over random: 0.50 [0.50, 0.50]", "fewer labels: held"):
        assert piece in text
    result = json.loads(json.dumps(query_view.to_json(seeds, outcomes, Sizes())))
    assert result["seeds"][1]["needed"] == pytest.approx({"random": 80, "active": 40, "level": 0.7})
    assert result["labels_ratio"]["value"] == pytest.approx(0.5)
    assert len(result["statements"]) == 5 and result["sizes"]["members"] == 3
