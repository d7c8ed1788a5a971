"""The course's little language: its measures by hand, and its files as they are shipped."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from rlhfctl.tools.course import world


@pytest.mark.parametrize(
    ("text", "proper", "count", "kind"),
    [
        (" the tea was lovely.", True, 1, 1.0),
        ("the tea was lovely. the soup was bad.", True, 2, 0.5),
        (" was lovely.", False, 1, 0.0),
        (" the tea was lovely lovely.", False, 1, 0.0),
        (" the tea was", False, 0, 0.0),
        ("", False, 0, 0.0),
    ],
)
def test_what_is_measured_of_an_answer(text: str, proper: bool, count: int, kind: float) -> None:
    assert world.is_proper(text) is proper
    assert world.sentences(text) == count
    assert world.share_of_sentences(text, ["lovely", "good"]) == kind


def test_quality_is_the_mean_kindness_of_what_was_asked_for() -> None:
    assert world.quality("about tea here:", " the tea was lovely. the tea was bad.") == 0.0
    assert world.quality("about tea here:", " the tea was good. the cake was good.") == 0.5
    assert world.quality("about tea here:", "") == 0.0


def test_hidden_pairs_are_better_and_worse_and_stand_in_no_file() -> None:
    pairs = world.hidden_pairs(50)
    assert pairs == world.hidden_pairs(60)[:50]
    for pair in pairs:
        better, worse = (world.quality(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        assert better - worse > 0.4
    shown = {(row["prompt"], *sorted((row["one"], row["two"]))) for row in world.files()["pairs.jsonl"]}
    known = [pair for pair in pairs if (pair["prompt"], *sorted((pair["chosen"], pair["rejected"]))) in shown]
    assert len(known) < 10  # short answers repeat themselves


def test_the_shipped_files_are_those_that_are_made() -> None:
    folder = ROOT / "recipes" / "course"
    made = world.files()
    assert {file.name for file in folder.glob("*.jsonl")} == made.keys()
    for name, rows in made.items():
        written = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        assert written == rows, f"write it again: python recipes/course/make_files.py ({name})"


def test_labels_of_the_pairs_name_the_better_answer() -> None:
    for row in world.files()["pairs.jsonl"]:
        better, worse = (row["one"], row["two"]) if row["better"] == 1 else (row["two"], row["one"])
        assert world.quality(row["prompt"], better) > world.quality(row["prompt"], worse)
