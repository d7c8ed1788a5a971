"""A stage's identity as text, as a folder, and found again from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.paths import RunPaths, StageId, stage_at


@pytest.mark.parametrize(("stage", "text"), [(StageId(1, "sft"), "sft"), (StageId(12, "ppo"), "round-12/ppo")])
def test_a_stage_is_its_text_and_its_folder(stage: StageId, text: str) -> None:
    assert str(stage) == text
    assert StageId.parse(text) == stage
    folder = RunPaths(Path("runs/x")).stage(stage)
    assert folder == RunPaths(Path("runs/x")).stage(text) == Path("runs/x") / text
    assert stage.run_of(folder) == Path("runs/x")


@pytest.mark.parametrize("text", ["", "round-1/sft", "round-02/sft", "round-2/", "other/sft", "round-2/a/b", "round-2"])
def test_other_texts_are_no_stage(text: str) -> None:
    with pytest.raises(ValueError, match="not a stage"):
        StageId.parse(text)


def test_stages_are_ordered_by_round() -> None:
    assert sorted([StageId(10, "a"), StageId(2, "b"), StageId(1, "z")]) == [
        StageId(1, "z"),
        StageId(2, "b"),
        StageId(10, "a"),
    ]


def test_a_run_may_be_called_like_a_round(tmp_path: Path) -> None:
    run = tmp_path / "round-2"
    (run / "round-3").mkdir(parents=True)
    (run / "recipe.yaml").touch()
    assert stage_at(run / "sft") == (run, StageId(1, "sft"))
    assert stage_at(run / "round-3" / "sft") == (run, StageId(3, "sft"))
    (tmp_path / "recipe.yaml").touch()
    assert stage_at(run / "sft") == (run, StageId(1, "sft"))
