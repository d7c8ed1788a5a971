"""`rlhfctl sweep` as it is typed: refusals, a dry run, and a real sweep that is killed, goes on, and shares its sft."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Cli, run_here

from rlhfctl import fs
from rlhfctl.dashboard.jsonl import read_events

RECIPE = """\
name: tiny
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 400, max_position_embeddings: 128}
data:
  demonstrations: {source: "builtin:reviews", rows: 32}
  preferences: {source: "builtin:reviews", rows: 32, heldout: 0.25}
  prompts: {source: "builtin:reviews", rows: 24, eval: 4, test: 4}
sft: {lora: null, trainer: {max_steps: 2, per_device_train_batch_size: 8}}
reward: {lora: null, heldout: true, trainer: {max_steps: 1, per_device_train_batch_size: 8}}
ppo:
  lora: null
  total_episodes: 16
  per_device_train_batch_size: 8
  learning_rate: 1e-2
  response_length: 6
  temperature: 1.0
  eval: {every: 1}
compare: {samples_per_prompt: 1, judges: [gold], controls: none, bootstrap_samples: 100}
"""
KL = "ppo.kl_coef=0,0.5,2"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


def test_wrong_values_are_refused_with_exit_code_2(project: Path) -> None:
    result = run_here("sweep", "tiny.yaml", "ppo.kl_coef=0,high", "ppo.kl_coof=1", cwd=project)
    assert result.returncode == 2
    assert "--set ppo.kl_coef=high: ppo.kl_coef: expected a number" in result.stderr
    assert "--set ppo.kl_coof=1: ppo.kl_coof" in result.stderr and "did you mean" in result.stderr
    assert not (project / "runs").exists()


def test_a_run_of_that_folder_is_left_alone(project: Path) -> None:
    (project / "runs" / "tiny").mkdir(parents=True)
    (project / "runs" / "tiny" / "recipe.yaml").write_text("name: tiny")
    result = run_here("sweep", "tiny.yaml", KL, "--run-dir", "runs/tiny", cwd=project)
    assert result.returncode == 1 and "is the folder of a run" in result.stderr


def test_a_dry_run_lists_runs_and_makes_nothing(project: Path) -> None:
    result = run_here("sweep", "tiny.yaml", KL, "--dry-run", cwd=project)
    assert result.returncode == 0, result.stderr
    lines = " ".join(result.stdout.split())
    assert "kl_coef=0 sft, reward, heldout, ppo, compare to run" in lines
    assert lines.count("sft, reward, heldout shared; ppo, compare to run") == 2
    assert "3 combinations, 15 stages: 9 to run, 6 shared, 0 complete" in lines
    assert not (project / "runs").exists()


def test_a_sweep_that_is_in_use_is_refused(project: Path) -> None:
    with fs.RunLock(project / "runs" / "tiny-sweep" / ".lock"):
        result = run_here("sweep", "tiny.yaml", KL, cwd=project)
    assert result.returncode == 4 and "is in use by process" in result.stderr


def start(project: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlhfctl", "sweep", "tiny.yaml", KL, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.ci
def test_a_real_sweep_survives_kills_and_ends_as_single_runs_do(project: Path, cli: Cli) -> None:
    draw, kills = random.Random(0), 0
    sweep = project / "runs" / "tiny-sweep"
    while kills < 3:
        process = start(project)
        events = sweep / "events.jsonl"
        before = len(list(read_events(events))) if events.is_file() else 0
        wanted = before + draw.randrange(5, 40)
        while process.poll() is None and (not events.is_file() or len(list(read_events(events))) < wanted):
            time.sleep(0.05)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills
    done = cli("sweep", "tiny.yaml", KL, cwd=project)
    assert done.returncode == 0, done.stderr
    assert re.search(r"kl_coef=\S+ has the highest held-out reward of 3 settings without a KL limit", done.stdout)
    assert (sweep / "report.html").is_file()
    names = ["kl_coef=0", "kl_coef=0.5", "kl_coef=2"]
    weights = [next((sweep / name / "sft").rglob("model.safetensors")) for name in names]
    assert len({file.stat().st_ino for file in weights}) == 1
    started = [e["stage"] for e in read_events(sweep / "events.jsonl") if e["event"] == "finished" and not e["skipped"]]
    assert sorted(started) == sorted(set(started)) and sum(stage.endswith("/sft") for stage in started) == 1
    alone = cli("run", "tiny.yaml", "--set", "ppo.kl_coef=0.5", "--run-dir", "alone", cwd=project)
    assert alone.returncode == 0, alone.stderr
    for stage in ("sft", "reward", "heldout", "ppo"):
        found = [
            json.loads((run / stage / "manifest.json").read_text())
            for run in (sweep / "kl_coef=0.5", project / "alone")
        ]
        assert found[0]["fingerprint"] == found[1]["fingerprint"], stage  # a sweep changes nothing in a run
    watched = cli("watch", sweep, cwd=project)
    assert "[kl_coef=2/ppo] finished" in watched.stdout


@pytest.mark.ci
def test_a_failing_combination_is_listed_and_the_exit_code_says_so(project: Path) -> None:
    (project / "scores.py").write_text(
        "def short(prompts, completions):\n    return [-len(text) for text in completions]\n"
        "def broken(prompts, completions):\n    raise ConnectionError('no answer')\n"
    )
    text = RECIPE.replace("compare:", "# compare:").replace(
        "reward: {lora", 'reward: {function: "scores:short"} # {lora'
    )
    (project / "tiny.yaml").write_text(text)
    words = ("sweep", "tiny.yaml", "reward.function=scores:broken,scores:short", "--run-dir", "out")
    done = run_here(*words, cwd=project)
    assert done.returncode == 9, done.stderr
    failed, whole = "function=scores-broken", "function=scores-short"
    assert "1 of 2 combinations failed" in done.stderr and "no answer" in done.stderr and failed in done.stderr
    folders = {path.name.rpartition("-")[0]: path for path in (project / "out").glob("function*")}
    assert (folders[whole] / "ppo" / "manifest.json").is_file()
    assert not (folders[failed] / "ppo" / "manifest.json").is_file()
    shown = run_here("show", "out", cwd=project).stdout
    assert "failed:" in shown and "no answer" in shown
    (project / "scores.py").write_text(
        "def short(prompts, completions):\n    return [-len(text) for text in completions]\nbroken = short\n"
    )
    again = run_here(*words, cwd=project)
    assert again.returncode == 0, again.stderr
