"""More episodes for a finished PPO: it goes on from where it ended, with a new schedule; a kill changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LETTERS, SHARE_OF_A, run_here

from rlhfctl import fs
from rlhfctl.artifacts import load_artifact

MORE = ("--set", "ppo.total_episodes=48")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("more")
    prompts = ["ab"[n % 2] * (1 + n // 2) for n in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "letters.yaml").write_text(LETTERS)
    (folder / "scores.py").write_text(SHARE_OF_A)
    finished = run_here("run", "letters.yaml", "--run-dir", "first", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    shutil.copytree(folder / "first", folder / "run")
    planned = run_here("plan", "letters.yaml", "--run-dir", "run", *MORE, "--json", cwd=folder)
    assert "goes on from where it ended" in " ".join(planned.stdout.split()), planned.stderr
    longer = run_here("run", "letters.yaml", "--run-dir", "run", *MORE, cwd=folder)
    assert longer.returncode == 0, longer.stderr
    (folder / "said.txt").write_text(longer.stdout)
    return folder


def updates(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == "metrics" and line["stage"] == "ppo"]


def weights(run: Path) -> dict[str, str]:
    return {str(path.relative_to(run)): fs.hash_file(path) for path in sorted((run / "ppo").rglob("*.safetensors"))}


def test_it_goes_on_after_the_last_update_with_a_schedule_over_the_rest(project: Path) -> None:
    said = (project / "said.txt").read_text()
    assert "goes on from where it ended: changed section (total_episodes 24 -> 48)" in said
    new = updates(project / "run")[len(updates(project / "first")) :]
    assert [one["step"] for one in new if one["split"] == "train"] == [4, 5, 6]
    rates = [one["values"]["learning_rate"] for one in new if one["split"] == "train"]
    assert rates == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3])
    made = load_artifact(project / "run" / "ppo")
    assert made.manifest.section["total_episodes"] == 48 and made.manifest.metrics["updates"] == 6
    assert any("goes on from ppo, after 24 episodes" in note for note in made.manifest.notes)
    kept = list((project / "run" / "superseded").glob("ppo-*"))
    assert len(kept) == 1 and load_artifact(kept[0]).manifest.section["total_episodes"] == 24
    assert weights(project / "run") != weights(project / "first")
    again = run_here("run", "letters.yaml", "--run-dir", "run", *MORE, cwd=project)
    assert again.returncode == 0 and "skipped: unchanged" in again.stdout


@pytest.mark.ci
def test_a_kill_on_the_way_changes_nothing(project: Path) -> None:
    run = project / "killed"
    shutil.copytree(project / "first", run)
    before = len((run / "events.jsonl").read_bytes().splitlines())
    command = [sys.executable, "-m", "rlhfctl", "run", "letters.yaml", "--run-dir", run.name, *MORE]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(
            json.loads(line).get("step") == 4
            for line in (run / "events.jsonl").read_bytes().splitlines()[before:]
            if line.endswith(b"}")
        ):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (run / "ppo" / "manifest.json").is_file()
    done = run_here(*command[3:], cwd=project)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(project / "run")


@pytest.mark.parametrize(
    "changes",
    [
        ("--set", "ppo.total_episodes=16"),
        (*MORE, "--set", "ppo.kl_coef=0.3"),
        (*MORE, "--set", "ppo.critic=head"),
        (*MORE, "--force"),
    ],
)
def test_what_is_no_mere_continuation_begins_again(changes: tuple[str, ...], project: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(project / "first", run)
    result = run_here("run", "letters.yaml", "--run-dir", run, *changes, cwd=project)
    assert result.returncode == 0, result.stderr
    assert "goes on from where it ended" not in result.stdout
    new = updates(run)[len(updates(project / "first")) :]
    assert new[0]["step"] in (0, 1)
