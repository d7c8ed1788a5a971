"""`runs`: states, order, results and sizes; the command changes no file."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from typer.testing import CliRunner

from rlhfctl import fs
from rlhfctl.artifacts import publish_manifest
from rlhfctl.cli import app
from rlhfctl.errors import RlhfctlError
from rlhfctl.tools import runs
from rlhfctl.tools.runs import Run

Make = Callable[..., Path]

REPORT = {"verdict": "better", "primary_judge": "gold", "judges": {"gold": {"win_rate": 0.785}}}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a run folder with the manifests of the named stages, without training."""

    def run(name: str, *complete: str, under_way: str | None = None, active: float = 1e9, text: str = TINY) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(text)
        (folder / "events.jsonl").touch()
        for stage in complete:
            (folder / stage).mkdir()
            layout: dict[str, Any] = {}
            if stage == "compare":
                (folder / stage / "compare.json").write_text(json.dumps(REPORT))
                layout = {"compare": "compare.json"}
            publish_manifest(
                folder / stage, stage=stage, inputs={}, parents={}, section={}, layout=layout, seed=0, seconds=1,
                metrics={"loss": 0.5, "heldout_accuracy": 0.83},
            )  # fmt: skip
        if under_way is not None:
            (folder / under_way / "work").mkdir(parents=True)
        os.utime(folder / "events.jsonl", (active, active))
        return folder

    return run


def found(tmp_path: Path) -> dict[str, Run]:
    return {run.name: run for run in runs.find(tmp_path / "runs")}


def test_states_and_results(make: Make, tmp_path: Path) -> None:
    make("done", "sft", "reward", "ppo", "compare", active=3e8)
    make("half", "sft", "reward", under_way="ppo", active=2e8)
    make("fresh", active=4e8)
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "file").touch()
    seen = found(tmp_path)
    assert list(seen) == ["fresh", "done", "half"]  # newest first
    assert {name: run.state for name, run in seen.items()} == {
        "fresh": "unfinished", "done": "complete", "half": "unfinished",
    }  # fmt: skip
    assert seen["done"].result == "better: gold prefers it on 78%"
    assert seen["half"].result == "reward: heldout_accuracy 0.83"
    assert seen["half"].stages == {
        "sft": "complete", "reward": "complete", "ppo": "under way", "compare": "not started",
    }  # fmt: skip
    assert seen["fresh"].result == ""
    result = CliRunner().invoke(app, ["runs", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    day = time.strftime("%Y-%m-%d", time.localtime(2e8))  # in the time zone of whoever asks
    for text in ("complete", "under way", day, "better:"):
        assert text in words


def test_seeds_that_are_equally_far_are_named_once() -> None:
    def states(*parts: str) -> dict[str, str]:
        return dict(part.split("=") for part in parts)

    one = states("sft=complete", "reward=complete", "ppo=under way", "compare=not started")
    assert runs.progress(one) == "sft, reward complete; ppo under way; compare not started"
    several = states(
        "sft=complete", "seed-0/ppo=complete", "seed-0/compare=complete", "seed-4/ppo=complete",
        "seed-4/compare=complete", "seed-7/ppo=under way", "seed-7/compare=not started", "summary=not started",
    )  # fmt: skip
    assert runs.progress(several) == (
        "sft complete; summary not started; seeds 0, 4: ppo, compare complete; "
        "seed 7: ppo under way; compare not started"
    )
    assert runs.progress(states("sft=complete", "round-2/ppo=complete")) == "sft, ppo 2 complete"
    rounds = states("sft=complete", "ppo=complete", "round-2/ppo=complete", "round-3/ppo=under way", "compare=waiting")
    assert runs.progress(rounds) == "sft, ppo 1 to 2 complete; ppo 3 under way; compare waiting"
    both = states(
        "seed-0/ppo=complete", "round-2/seed-0/ppo=complete", "seed-1/ppo=complete", "round-2/seed-1/ppo=complete"
    )
    assert runs.progress(both) == "seeds 0, 1: ppo 1 to 2 complete"


def test_a_held_run_is_running(make: Make, tmp_path: Path) -> None:
    folder = make("live", "sft", under_way="reward")
    with fs.RunLock(folder / ".lock"):
        assert fs.is_locked(folder / ".lock")
        assert found(tmp_path)["live"].state == "running"
    assert found(tmp_path)["live"].state == "unfinished"
    with fs.RunLock(folder / ".lock"):  # and looking left it free
        pass
    assert fs.is_locked(folder / ".lock") is False


def test_looking_changes_nothing(make: Make, tmp_path: Path) -> None:
    make("done", "sft", "reward", "ppo", "compare")

    def state() -> dict[str, float]:
        return {str(path): path.stat().st_mtime for path in tmp_path.rglob("*")}

    before = state()
    found(tmp_path)
    assert state() == before


def test_one_that_cannot_be_read_hides_no_other(make: Make, tmp_path: Path) -> None:
    make("good", "sft")
    make("older", text="name: older\nmodel: {path: x}\nno_such_section: {}\n")
    make("torn", text="name: [")
    (make("cut", "sft") / "sft" / "manifest.json").write_text("{")
    (make("unsaid", "sft", "reward", "ppo", "compare") / "compare" / "compare.json").write_text("{}")
    make("listless", "sft", "reward", "ppo", "compare")
    (tmp_path / "runs" / "listless" / "compare" / "compare.json").write_text('{"primary_judge": "gold", "judges": []}')
    seen = found(tmp_path)
    assert seen.pop("good").state == "unfinished"
    assert {run.state for run in seen.values()} == {"unreadable"}
    assert len(seen) == 5
    assert "rlhfctl show" in seen["cut"].result


def test_a_recipe_whose_data_is_gone_is_still_listed(make: Make, tmp_path: Path) -> None:
    text = "name: x\nmodel: {path: /gone/model}\ndata: {demonstrations: {source: /gone/rows.jsonl}}\nsft: {}\n"
    make("moved", "sft", text=text)
    assert found(tmp_path)["moved"].state == "complete"


def test_sizes_count_each_file_once(make: Make, tmp_path: Path) -> None:
    folder = make("sized")
    before = found(tmp_path)["sized"].size
    (folder / "weights").write_bytes(b"x" * 1_500_000)
    os.link(folder / "weights", folder / "same")
    assert found(tmp_path)["sized"].size == before + 1_500_000
    assert [runs._size(n) for n in (0, 999, 999_499, 999_501, 1_500_000, 2_000_000_000)] == [
        "0 B", "999 B", "999 kB", "1 MB", "1.5 MB", "2 GB",
    ]  # fmt: skip


def test_what_is_no_folder_of_runs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("one")
    with pytest.raises(RlhfctlError, match=f"rlhfctl show {folder}"):
        runs.find(folder)
    with pytest.raises(RlhfctlError, match="there is no such folder"):
        runs.find(tmp_path / "none")
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # an empty folder; none
        result = CliRunner().invoke(app, ["runs"])
        assert (result.exit_code, result.output) == (0, "no runs in runs/; start one: rlhfctl run quickstart\n")
        shutil.rmtree("runs", ignore_errors=True)
