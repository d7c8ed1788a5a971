"""A run whose last stage is dpo: what it hands over is read as PPO's policy is, and it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, Cli

from rlhfctl.dashboard.jsonl import read_events

RECIPE = (
    TINY.split("ppo:\n")[0].split("reward:\n")[0]
    + """\
dpo:
  lora: {r: 4, lora_alpha: 8}
  beta: 0.2
  checkpoint_steps: 2
  trainer: {num_train_epochs: 2, learning_rate: 1e-2, per_device_train_batch_size: 8, logging_steps: 1}
compare: {samples_per_prompt: 2, judges: [gold], bootstrap_samples: 200, max_new_tokens: 12}
"""
)


def hashes(run: Path) -> dict[str, str]:
    """Of the weights and the recorded outputs: peft writes the lists of its configuration in any order."""
    outputs = json.loads((run / "dpo" / "manifest.json").read_text())["outputs"]
    return {name: outputs[name] for name in ("adapter/adapter_model.safetensors", "probes.json")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cli_of_module: Cli) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    (folder / "tiny.yaml").write_text(RECIPE)
    done = cli_of_module("run", "tiny.yaml", "--run-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.ci
def test_the_policy_is_read_as_ppos_is(project: Path, cli: Cli) -> None:
    again = cli("run", "tiny.yaml", "--run-dir", "run", cwd=project)
    assert "[dpo] note skipped: unchanged (base, data.preferences, model, section, seed)" in again.stdout
    exported = cli("export", "run", "--to", "policy", cwd=project)  # the policy, whatever stage made it
    assert exported.returncode == 0, exported.stderr
    assert (project / "policy" / "model.safetensors").is_file()
    assert "direct preference optimization" in (project / "policy" / "README.md").read_text()
    sampled = cli("sample", "run", "--n", 2, "--prompts", 2, "--from", "dpo", "--out", "set.jsonl", cwd=project)
    assert sampled.returncode == 0, sampled.stderr
    page = cli("report", "run", "--format", "md", cwd=project)
    assert page.returncode == 0 and "rewards/margins" in page.stdout
    checked = cli("verify", "run", cwd=project)
    assert checked.returncode == 0, checked.stdout
    assert "dpo" in cli("show", "run", cwd=project).stdout


@pytest.mark.ci
def test_a_killed_dpo_ends_with_the_same_weights(project: Path, cli: Cli) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlhfctl", "run", "tiny.yaml", "--run-dir", "killed"]
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL)
    events = project / "killed" / "events.jsonl"
    while process.poll() is None:
        found = read_events(events) if events.is_file() else ()
        if any(event["event"] == "checkpoint" and event["stage"] == "dpo" for event in found):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (project / "killed" / "dpo" / "manifest.json").is_file()
    done = cli("run", "tiny.yaml", "--run-dir", "killed", cwd=project)
    assert done.returncode == 0, done.stderr
    resumed = [e["resumed_from"] for e in read_events(events) if e["event"] == "started" and e["stage"] == "dpo"]
    assert resumed[0] is None and resumed[-1] >= 2
    assert hashes(project / "killed") == hashes(project / "run")


@pytest.mark.ci
def test_all_weights_can_be_trained_against_a_second_base(project: Path, cli: Cli) -> None:
    whole = ("--set", "dpo.lora=null", "--set", "dpo.trainer.max_steps=2", "--until", "dpo")
    done = cli("run", "tiny.yaml", "--run-dir", "run", *whole, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "[sft] note skipped" in done.stdout and (project / "run" / "dpo" / "model" / "model.safetensors").is_file()
    metrics = json.loads((project / "run" / "dpo" / "manifest.json").read_text())["metrics"]
    assert metrics["steps"] == 2 and 0 <= metrics["heldout_accuracy"] <= 1


@pytest.mark.ci
def test_the_plan_foresees_it(project: Path, cli: Cli) -> None:
    plan = json.loads(cli("plan", "tiny.yaml", "--run-dir", "new", "--json", cwd=project).stdout)
    adapter = next(stage for stage in plan["stages"] if stage["name"] == "dpo")
    assert adapter["steps"] == 12 and adapter["peak"]["needs"].keys() == {"base*", "adapter"}
    plan = json.loads(
        cli("plan", "tiny.yaml", "--run-dir", "new", "--json", "--set", "dpo.lora=null", cwd=project).stdout
    )
    whole = next(stage for stage in plan["stages"] if stage["name"] == "dpo")
    assert whole["peak"]["needs"].keys() == {"policy", "reference"}
    assert whole["peak"]["needs"]["reference"]["weights"] == whole["peak"]["needs"]["policy"]["weights"]
