"""The whole loop at the smallest size: what a run leaves, what is skipped, what runs again, who may run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, Cli, run_cli

from rlhfctl import fs
from rlhfctl.artifacts import load_artifact
from rlhfctl.dashboard.jsonl import read_events

STAGES = ("sft", "reward", "ppo", "compare")


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(recipe, run): a copy of the finished run, to do things to."""
    shutil.copytree(tiny_run, tmp_path / "run")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY, encoding="utf-8")
    return recipe, tmp_path / "run"


def manifests(run: Path) -> dict[str, str]:
    return {stage: (run / stage / "manifest.json").read_text() for stage in STAGES}


def test_a_run_leaves_complete_artifacts(tiny_run: Path) -> None:
    for stage in STAGES:
        artifact = load_artifact(tiny_run / stage)
        artifact.verify()
        assert artifact.manifest.seed == 0
        assert artifact.manifest.versions["trl"]
        assert not (tiny_run / stage / "work").exists()
    assert (
        load_artifact(tiny_run / "ppo").parent("reward").fingerprint == load_artifact(tiny_run / "reward").fingerprint
    )
    assert (tiny_run / "recipe.yaml").is_file()


def test_the_verdict_file_keeps_its_contract(tiny_run: Path) -> None:
    report = json.loads((tiny_run / "compare" / "compare.json").read_text())
    assert report["verdict"] in ("better", "worse", "undecided", "mixed")
    assert report["primary_judge"] == "gold"
    assert report["prompts"] == 12
    assert report["samples_per_prompt"] == 2
    assert {"kl_mean", "length_policy_mean", "length_reference_mean"} <= report.keys()
    wanted = {"policy_mean", "reference_mean", "delta", "delta_ci95", "win_rate", "win_rate_ci95", "ties", "p_value"}
    for judge in ("gold", "reward_model"):
        assert wanted <= report["judges"][judge].keys()
    assert report["judges"]["gold"]["independent"] is True
    assert report["judges"]["reward_model"]["independent"] is False
    samples = [json.loads(line) for line in (tiny_run / "compare" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12 * 2


def test_events_tell_the_whole_story(tiny_run: Path) -> None:
    events = list(read_events(tiny_run / "events.jsonl"))
    assert [e["stage"] for e in events if e["event"] == "finished"] == list(STAGES)
    ppo = [e["values"] for e in events if e["event"] == "metrics" and e["stage"] == "ppo" and e["split"] == "train"]
    assert all(0 <= values["repetition"] < 1 for values in ppo)
    (started,) = [e["settings"] for e in events if e["event"] == "started" and e["stage"] == "ppo"]
    assert started["learned_reward"] is True  # alarms watch KL also without a penalty
    assert len(ppo) == 2
    assert abs(ppo[0]["kl"]) < 1e-6  # policy and reference are the same before the first update
    evaluations = [
        e["step"] for e in events if e["event"] == "metrics" and e["stage"] == "ppo" and e["split"] == "eval"
    ]
    assert evaluations == [0, 1, 2]


def test_the_plain_log_is_greppable(tiny_run: Path) -> None:
    out = (tiny_run / "stdout.txt").read_text()
    assert re.search(r"^\[sft\] step 6/6 ", out, re.MULTILINE)
    assert re.search(r"^\[ppo\] update 1/2 .*score=.* kl=", out, re.MULTILINE) or "[ppo] step 1/2" in out
    assert "===training policy===" not in out


def test_nothing_changed_nothing_done(copy: tuple[Path, Path], here: Cli) -> None:
    recipe, run = copy
    before = manifests(run)
    result = here("run", recipe, "--run-dir", run)
    assert result.returncode == 0, result.stderr
    assert manifests(run) == before
    assert result.stdout.count("skipped: unchanged") == len(STAGES)
    assert "data.preferences" in result.stdout  # it says what it looked at


def test_a_changed_key_reruns_what_depends_on_it(copy: tuple[Path, Path], here: Cli) -> None:
    recipe, run = copy
    before = manifests(run)
    result = here("run", recipe, "--run-dir", run, "--set", "ppo.kl_coef=0.2")
    assert result.returncode == 0, result.stderr
    after = manifests(run)
    assert after["sft"] == before["sft"]
    assert after["reward"] == before["reward"]
    assert after["ppo"] != before["ppo"]
    assert "runs again: changed section (kl_coef 0.05 -> 0.2)" in result.stdout
    kept = list((run / "superseded").glob("ppo-*"))
    assert len(kept) == 1
    assert (kept[0] / "manifest.json").read_text() == before["ppo"]


def test_changed_data_reruns_what_depends_on_it(tmp_path: Path, here: Cli) -> None:
    rows = [{"prompt": f"question {i}", "completion": f" answer {i}"} for i in range(24)]
    data = tmp_path / "demos.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TINY.replace(
        'demonstrations: {source: "builtin:reviews", rows: 96}', "demonstrations: {source: demos.jsonl}"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert here("sft", recipe, "--run-dir", tmp_path / "run").returncode == 0
    assert "skipped" in here("sft", recipe, "--run-dir", tmp_path / "run").stdout
    data.write_text(data.read_text() + json.dumps({"prompt": "more", "completion": " of it"}) + "\n")
    assert "changed data.demonstrations" in here("sft", recipe, "--run-dir", tmp_path / "run").stdout


def test_force_runs_again_and_gives_the_same(copy: tuple[Path, Path], here: Cli) -> None:
    recipe, run = copy
    before = load_artifact(run / "sft").fingerprint
    result = here("sft", recipe, "--run-dir", run, "--force")
    assert result.returncode == 0, result.stderr
    assert load_artifact(run / "sft").fingerprint == before
    assert list((run / "superseded").glob("sft-*"))


def test_an_altered_artifact_stops_the_run(copy: tuple[Path, Path], here: Cli) -> None:
    recipe, run = copy
    weights = run / "sft" / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    result = here("ppo", recipe, "--run-dir", run, "--force")
    assert result.returncode == 3
    assert "was altered after its stage finished" in result.stderr
    assert "fix:" in result.stderr
    assert "Traceback" not in result.stderr


def test_until_and_from(tiny_recipe: Path, tmp_path: Path, here: Cli) -> None:
    run = tmp_path / "run"
    assert here("run", tiny_recipe, "--run-dir", run, "--until", "sft").returncode == 0
    assert not (run / "reward").exists()
    early = here("run", tiny_recipe, "--run-dir", run, "--from", "ppo")
    assert early.returncode == 3
    assert "reward" in early.stderr
    wrong = here("run", tiny_recipe, "--run-dir", run, "--until", "sfd")
    assert wrong.returncode == 1
    assert "its stages are sft, reward, ppo, compare" in wrong.stderr


def test_a_stage_whose_parent_is_missing_says_so(tiny_recipe: Path, tmp_path: Path, here: Cli) -> None:
    result = here("reward", tiny_recipe, "--run-dir", tmp_path / "run")
    assert result.returncode == 3
    assert "run that stage first" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_process_is_told_who_holds_the_run(copy: tuple[Path, Path]) -> None:
    recipe, run = copy
    with fs.RunLock(run / ".lock"):
        result = run_cli("run", recipe, "--run-dir", run)
    assert result.returncode == 4
    assert "is in use by process" in result.stderr


def test_killed_sft_goes_on_to_the_same_weights(tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    """The short form of tests/campaigns/kills.py: one kill after the first checkpoint, mid-training."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "rlhfctl", "sft", str(tiny_recipe), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(run.glob("sft/work/checkpoint-*/complete.json")):
        assert process.poll() is None, "ended before its first checkpoint was seen"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "sft" / "manifest.json").exists()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"\[sft\] started steps=6 resumed_from=[246]", result.stdout)
    expected = load_artifact(tiny_run / "sft").manifest.outputs["model/model.safetensors"]
    assert load_artifact(run / "sft").manifest.outputs["model/model.safetensors"] == expected


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over(tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "rlhfctl", "sft", str(tiny_recipe), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list(run.glob("sft/work/checkpoint-4/complete.json")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    optimizer = max(run.glob("sft/work/checkpoint-*/optimizer.pt"), key=lambda p: int(p.parent.name.split("-")[1]))
    optimizer.unlink()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{optimizer.parent.name} is passed over: optimizer.pt is missing" in result.stdout
    expected = load_artifact(tiny_run / "sft").manifest.outputs["model/model.safetensors"]
    assert load_artifact(run / "sft").manifest.outputs["model/model.safetensors"] == expected


def test_use_best_hands_on_the_best_policy_of_the_evaluations(copy: tuple[Path, Path], here: Cli) -> None:
    recipe, run = copy
    result = here("ppo", recipe, "--run-dir", run, "--set", "ppo.use=best", "--set", "ppo.total_episodes=64")
    assert result.returncode == 0, result.stderr
    events = [e for e in read_events(run / "events.jsonl") if e["event"] == "metrics" and e["stage"] == "ppo"]
    evaluations = [e for e in events if e["split"] == "eval"][-5:]  # updates 0 to 4 of this command
    assert [e["step"] for e in evaluations] == [0, 1, 2, 3, 4]
    best = max(evaluations, key=lambda e: e["values"]["eval_objective"])
    assert load_artifact(run / "ppo").manifest.metrics["best_update"] == best["step"]
    assert f"is that of update {best['step']}" in result.stdout


def test_a_stage_on_its_own_says_what_the_others_were_made_with(copy: tuple[Path, Path], here: Cli) -> None:
    recipe, run = copy
    changed = here(
        "compare", recipe, "--run-dir", run, "--set", "ppo.kl_coef=0.2", "--set", "compare.samples_per_prompt=1"
    )
    assert changed.returncode == 0, changed.stderr
    said = "[ppo] warning: is used as it is, though section (kl_coef 0.05 -> 0.2) changed since it was made"
    assert said in changed.stdout
    shown = here("show", run, env={"COLUMNS": "200"})
    assert (
        "ppo: was made with other settings than recipe.yaml states now (stated -> used): kl_coef 0.2 -> 0.05"
        in shown.stdout
    )


def test_compare_after_ppo_on_models_from_elsewhere(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, here: Cli
) -> None:
    models = ["--policy", tiny_run / "sft", "--reward-model", tiny_run / "reward", "--run-dir", tmp_path / "run"]
    small = ["--set", "ppo.total_episodes=16"]
    assert here("ppo", tiny_recipe, *models, *small).returncode == 0
    result = here("compare", tiny_recipe, "--run-dir", tmp_path / "run", *small)
    assert result.returncode == 0, result.stderr
    made = load_artifact(tmp_path / "run" / "compare")
    assert made.parent("reference").fingerprint == load_artifact(tiny_run / "sft").fingerprint
    assert made.parent("reward").fingerprint == load_artifact(tiny_run / "reward").fingerprint
    listed = json.loads(here("runs", tmp_path, "--json").stdout)
    assert [(run["name"], run["state"]) for run in listed] == [("run", "complete")]
    assert listed[0]["stages"]["sft"] == listed[0]["stages"]["reward"] == "from elsewhere"
    shown = json.loads(here("show", tmp_path / "run", "--json").stdout)["stages"]
    assert shown["sft"] == {"state": "from elsewhere", "manifest": None}
    assert shown["ppo"]["manifest"]["seed"] == 0
