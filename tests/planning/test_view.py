"""The plan on the terminal."""

from __future__ import annotations

import re
from pathlib import Path

from small_plans import planned, shown

from rlhfctl.graph import Request
from rlhfctl.planning.view import count, size


def test_the_view_says_it_all(tiny_recipe: Path, tiny_run: Path) -> None:
    new = planned(tiny_recipe, tiny_recipe.parent / "nothing")
    text = shown(new, 160)
    for needed in ("sft", "runs: nothing is there yet", "libraries, rows", "optimizer", "activations", "disk", "fits"):
        assert needed in text
    assert re.search(r"\nppo +\n  base\* ", text) and re.search(r"\n  critic ", text)
    assert max(map(len, shown(new, 80).splitlines())) <= 80
    done = planned(tiny_recipe, tiny_run, request=Request(until="reward"))
    assert "nothing to do: every stage is complete" in shown(done)


def test_numbers_as_people_read_them() -> None:
    assert [size(n) for n in (999, 1_500, 23_450_000, 1_234_000_000)] == ["999 B", "1.50 kB", "23.4 MB", "1.23 GB"]
    assert [count(n) for n in (42, 12_345, 1_230_000, 7_000_000_000)] == ["42", "12.3k", "1.23M", "7.00B"]
