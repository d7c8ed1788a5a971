"""A stage's identity as text, as a folder, and found again from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.paths import RunPaths, StageId, stage_at


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (StageId(1, "sft"), "sft"),
        (StageId(12, "ppo"), "round-12/ppo"),
        (StageId(1, "ppo", 0), "seed-0/ppo"),
        (StageId(3, "ppo", 20), "round-3/seed-20/ppo"),
    ],
)
def test_a_stage_is_its_text_and_its_folder(stage: StageId, text: str) -> None:
    assert str(stage) == text
    assert StageId.parse(text) == stage
    folder = RunPaths(Path("runs/x")).stage(stage)
    assert folder == RunPaths(Path("runs/x")).stage(text) == Path("runs/x") / text
    assert stage.run_of(folder) == Path("runs/x")


@pytest.mark.parametrize(
    "text",
    ["", "round-1/sft", "round-02/sft", "round-2/", "other/sft", "round-2/a/b", "round-2", "seed-0", "seed-01/ppo",
     "seed-1/", "seed-1/round-2/ppo", "seed-1/seed-2/ppo", "round-1/seed-1/ppo", "seed--1/ppo"],
)  # fmt: skip
def test_other_texts_are_no_stage(text: str) -> None:
    with pytest.raises(ValueError, match="not a stage"):
        StageId.parse(text)


def test_a_stage_has_a_seed_of_0_or_more() -> None:
    with pytest.raises(ValueError, match="seed -1"):
        StageId(1, "ppo", -1)


def test_stages_are_ordered_by_round_and_seed() -> None:
    texts = ["z", "seed-0/b", "seed-2/a", "seed-10/a", "round-2/b", "round-2/seed-1/a", "round-10/a"]
    stages = [StageId.parse(text) for text in texts]
    assert sorted([*stages[3:], *stages[:3]]) == stages


def test_the_stages_of_a_run_are_found_by_their_folders(tmp_path: Path) -> None:
    texts = ["sft", "seed-0/ppo", "seed-1/ppo", "round-2/reward", "round-2/seed-1/ppo"]
    for text in (*texts, ".sft.partial", "seed-1/.ppo.partial", "seed-x/ppo", "ppo/seed-1", "round-2/round-3/ppo"):
        (tmp_path / text).mkdir(parents=True)
    (tmp_path / "seed-1" / "notes.txt").touch()
    found = [str(stage) for stage in RunPaths(tmp_path).stages()]
    assert found == ["ppo", "seed-x", *texts]  # a folder of any name may be a stage: the table of stages knows
    assert [str(stage) for stage in RunPaths(tmp_path).later_rounds()] == texts[3:]


def test_earlier_attempts_lie_in_the_folder_of_their_seed() -> None:
    paths = RunPaths(Path("x"))
    for text, folder in (("ppo", ""), ("seed-1/ppo", "seed-1"), ("round-2/seed-1/ppo", "round-2/seed-1")):
        assert paths.superseded_stages(StageId.parse(text)) == Path("x/superseded") / folder


def test_a_run_may_be_called_like_a_round(tmp_path: Path) -> None:
    run = tmp_path / "round-2"
    (run / "round-3").mkdir(parents=True)
    (run / "recipe.yaml").touch()
    assert stage_at(run / "sft") == (run, StageId(1, "sft"))
    assert stage_at(run / "round-3" / "sft") == (run, StageId(3, "sft"))
    (tmp_path / "recipe.yaml").touch()
    assert stage_at(run / "sft") == (run, StageId(1, "sft"))


def test_a_run_may_be_called_like_a_seed(tmp_path: Path) -> None:
    run = tmp_path / "seed-1"
    (run / "seed-2").mkdir(parents=True)
    (run / "recipe.yaml").touch()
    assert stage_at(run / "ppo") == (run, StageId(1, "ppo"))
    assert stage_at(run / "seed-2" / "ppo") == (run, StageId(1, "ppo", 2))
    assert stage_at(run / "round-2" / "seed-2" / "ppo") == (run, StageId(2, "ppo", 2))
    (tmp_path / "recipe.yaml").touch()
    assert stage_at(run / "ppo") == (run, StageId(1, "ppo"))
