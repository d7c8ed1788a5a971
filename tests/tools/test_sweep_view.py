"""What `show` and `runs` say of a sweep, and commands that are about one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_here
from made_sweep import sweep_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("view")
    sweep_of(place / "runs" / "tiny-sweep")
    (place / "runs" / "tiny-sweep" / "kl_coef=0.1" / "recipe.yaml").unlink()  # not begun
    return place


def test_show_lists_the_combinations_and_their_errors(folder: Path) -> None:
    shown = run_here("show", "runs/tiny-sweep", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "tiny in runs/tiny-sweep: 3 combinations" in shown.stdout
    assert "kl_coef=1 failed: memory ran out" in shown.stdout and "not begun: kl_coef=0.1" in shown.stdout
    rows = json.loads(run_here("show", "runs/tiny-sweep", "--json", cwd=folder).stdout)["combinations"]
    assert [row["error"] for row in rows] == [None, None, "memory ran out"]
    assert rows[0]["run"]["name"] == "kl_coef=0" and rows[1]["run"] is None


def test_runs_has_a_row_for_the_sweep_and_lists_its_runs(folder: Path) -> None:
    (row,) = json.loads(run_here("runs", "--json", cwd=folder).stdout)
    assert (row["name"], row["state"]) == ("tiny-sweep", "unfinished")
    assert row["stages"] == {"kl_coef=0": "complete", "kl_coef=0.1": "not started", "kl_coef=1": "failed"}
    assert row["result"] == "sweep of 3 combinations, 1 failed"
    inside = json.loads(run_here("runs", "runs/tiny-sweep", "--json", cwd=folder).stdout)
    assert {row["name"] for row in inside} == {"kl_coef=0", "kl_coef=1"}


@pytest.mark.parametrize("command", ["verify", "tokens", "export", "chat", "sample", "score"])
def test_commands_about_one_run_name_those_of_the_sweep(folder: Path, command: str) -> None:
    more = {"export": ["--to", "out"], "sample": ["--out", "out.jsonl"], "score": ["pairs.jsonl"]}.get(command, [])
    (folder / "pairs.jsonl").write_text("{}\n")
    result = run_here(command, "runs/tiny-sweep", *more, cwd=folder)
    assert result.returncode == 1, result.stderr
    assert "is a sweep, which holds several runs" in result.stderr and "runs/tiny-sweep/kl_coef=0" in result.stderr
