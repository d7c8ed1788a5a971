"""Continue a run folder that an earlier version made (commit c51e839): stages are skipped, or resume.

`old_run/complete` is the whole run of `old_run/old.yaml`; `old_run/killed` is its ppo stage, killed with SIGKILL after
the second of four updates.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cli, run_here

OLD = Path(__file__).parent / "old_run"


def put(tmp_path: Path) -> tuple[Path, Path]:
    """(recipe, run): a copy of the complete run, to continue."""
    shutil.copytree(OLD / "complete", tmp_path / "run")
    shutil.copy(OLD / "old.yaml", tmp_path / "old.yaml")
    return tmp_path / "old.yaml", tmp_path / "run"


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_stage_of_a_complete_run_is_skipped(tmp_path: Path) -> None:
    recipe, run = put(tmp_path)
    before = {path: path.read_bytes() for path in run.glob("*/manifest.json")}
    heard = len(events(run))
    result = run_cli("run", recipe, "--run-dir", run)
    assert result.returncode == 0, result.stderr
    finished = [event for event in events(run)[heard:] if event["event"] == "finished"]
    assert [(event["stage"], event["skipped"]) for event in finished] == [
        ("sft", True), ("reward", True), ("ppo", True), ("compare", True),
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in run.glob("*/manifest.json")} == before


@pytest.mark.ci
def test_a_killed_stage_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    recipe, run = put(tmp_path)
    shutil.rmtree(run / "compare")
    shutil.rmtree(run / "ppo")
    shutil.copytree(OLD / "killed" / "ppo", run / "ppo")
    shutil.copy(OLD / "killed" / "events.jsonl", run / "events.jsonl")
    heard = len(events(run))
    result = run_cli("run", recipe, "--run-dir", run)
    assert result.returncode == 0, result.stderr
    new = events(run)[heard:]
    (start,) = [event for event in new if event["event"] == "started" and event["stage"] == "ppo"]
    assert start["resumed_from"] == 2
    steps = [e["step"] for e in new if e["event"] == "metrics" and e["stage"] == "ppo" and e["split"] == "train"]
    assert steps == [3, 4]
    assert (run / "ppo" / "manifest.json").is_file() and (run / "compare" / "compare.json").is_file()


def test_its_verdict_and_its_stages_are_shown(tmp_path: Path) -> None:
    _, run = put(tmp_path)
    shown = run_here("show", run, "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    assert set(told["stages"]) == {"sft", "reward", "ppo", "compare"}
    watched = run_here("watch", run, cwd=tmp_path)
    assert watched.returncode == 0 and "verdict" in watched.stdout
    compared = run_here("compare", run, cwd=tmp_path)
    assert compared.returncode == 0 and "win rate" in compared.stdout and "LC" not in compared.stdout
