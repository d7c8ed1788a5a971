"""The context of a stage: its folders, what it reports, and that only the first process publishes."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_stage import context

from rlhfctl.artifacts import load_artifact
from rlhfctl.events import Event, Note, Warned
from rlhfctl.stages.context import PublishedByFirst


def test_a_stage_of_a_later_round_has_its_own_folder(tmp_path: Path) -> None:
    first, second = (context(tmp_path, name, []) for name in ("ppo", "round-2/ppo"))
    assert (first.folder, first.work) == (tmp_path / "ppo", tmp_path / "ppo" / "work")
    assert (second.folder, second.work) == (tmp_path / "round-2" / "ppo", tmp_path / "round-2" / "ppo" / "work")


def test_notes_and_warnings_are_emitted_and_reach_the_manifest(tmp_path: Path) -> None:
    events: list[Event] = []
    ctx = context(tmp_path, "sft", events)
    ctx.note("a note")
    ctx.warn("a danger")
    assert [(type(event), event.stage) for event in events] == [(Note, "sft"), (Warned, "sft")]
    (ctx.folder / "model").mkdir(parents=True)
    (ctx.folder / "model" / "weights").write_text("w")
    made = ctx.publish({"lora": None}, {"model": "model"}, metrics={"loss": 0.5})
    assert made.manifest == load_artifact(ctx.folder).manifest
    assert made.manifest.notes == ["a note", "warning: a danger"]
    assert (made.manifest.inputs, made.manifest.metrics) == ({"seed": "0"}, {"loss": 0.5})


def test_another_process_than_the_first_publishes_nothing(tmp_path: Path) -> None:
    ctx = context(tmp_path, "sft", [], process=1)
    assert ctx.folder == tmp_path / "sft" / "work" / "process-1"  # thrown away with the work folder
    ctx.folder.mkdir(parents=True)
    with pytest.raises(PublishedByFirst):
        ctx.publish({}, {}, metrics={})
    assert list(ctx.folder.iterdir()) == []
