"""Runs over several seeds: shared stages run once, kills change nothing, seeds come and go, recipes are coupled."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, run_here

from rlhfctl import fs

# The loop of TINY with a reward function and few responses: seconds for two seeds.
RECIPE = """\
extends: tiny.yaml
name: seeds
seeds: 2
reward: {function: "scores:short"}
ppo: {lora: null, total_episodes: 48, trace_every: 1, trace_episodes: 16, eval: {every: 3}, checkpoint_steps: 1}
compare:
  judges: [reward_function, gold]
  samples_per_prompt: 2
  controls: {temperatures: [0.0], matched_entropy: false, best_of_n: 0}
"""
SCORES = "def short(prompts, completions):\n    return [-float(len(text)) for text in completions]\n"
KILLS = 8


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, and one undisturbed run of it in runs/seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "scores.py").write_text(SCORES, encoding="utf-8")
    finished = run_here("run", "recipe.yaml", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    (folder / "stdout.txt").write_text(finished.stdout, encoding="utf-8")
    return folder


def events(run: Path) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def ran(found: list[dict[str, Any]]) -> list[str]:
    """The stages that a command finished and did not skip."""
    return [event["stage"] for event in found if event["event"] == "finished" and not event["skipped"]]


def content(run: Path) -> dict[str, str]:
    """Hashes of what must not depend on kills: models, verdicts, the summary."""
    files = [*run.rglob("*.safetensors"), *run.rglob("compare.json"), *run.rglob("summary.json")]
    return {path.relative_to(run).as_posix(): fs.hash_file(path) for path in files}


ALL = ["sft", "seed-0/ppo", "seed-0/compare", "seed-1/ppo", "seed-1/compare", "summary"]


def test_shared_stages_run_once_and_each_seed_is_a_run_of_its_own(project: Path) -> None:
    run = project / "runs" / "seeds"
    found = events(run)
    assert found[0]["stages"] == ran(found) == ALL
    assert {event["stage"] for event in found} == {"run", *ALL}  # no stage speaks under another name
    settings = [event["settings"] for event in found if event["event"] == "started" and event["stage"].endswith("ppo")]
    assert [one["learned_reward"] for one in settings] == [False, False]  # a function: alarms let its KL grow
    summary = json.loads((run / "summary" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["seeds"], summary["shared"], summary["primary_judge"]) == ([0, 1], ["sft"], "reward_function")
    verdicts = [event for event in found if event["event"] == "verdict"]
    assert [event["stage"] for event in verdicts] == ["seed-0/compare", "seed-1/compare", "summary"]
    assert verdicts[-1]["sentence"] == summary["sentence"] and "over 2 seeds" in summary["sentence"]
    for judge, entry in summary["judges"].items():
        alone = [
            json.loads((run / f"seed-{seed}" / "compare" / "compare.json").read_text(encoding="utf-8"))["judges"][judge]
            for seed in (0, 1)
        ]
        assert entry["delta"] == pytest.approx(sum(one["delta"] for one in alone) / 2)
        assert entry["win_rate"] == pytest.approx(sum(one["win_rate"] for one in alone) / 2)
        assert [row["win_rate"] for row in entry["per_seed"]] == [one["win_rate"] for one in alone]
    printed = (project / "stdout.txt").read_text(encoding="utf-8")
    assert "[seed-1/ppo] update 3/3" in printed and "[summary] verdict" in printed and "all  " in printed
    base = json.loads((run / "seed-0" / "ppo" / "manifest.json").read_text(encoding="utf-8"))["parents"]["base"]
    assert base["path"] == "sft"


def test_each_seed_is_the_run_that_this_seed_alone_gives(project: Path) -> None:
    options = ("--set", "seeds=null", "--set", "seed=1", "--run-dir", "alone")
    shutil.copytree(project / "runs" / "seeds" / "sft", project / "alone" / "sft")  # of seed 0, which seeds share
    alone = run_here("run", "recipe.yaml", "--from", "ppo", *options, cwd=project)
    assert alone.returncode == 0, alone.stderr
    for name in ("ppo/model/model.safetensors", "compare/samples.jsonl"):
        made, expected = project / "alone" / name, project / "runs" / "seeds" / "seed-1" / name
        assert fs.hash_file(made) == fs.hash_file(expected), name


@pytest.mark.ci
@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, KILLS))])
def test_a_kill_at_a_random_moment_changes_nothing(project: Path, number: int) -> None:
    expected = content(project / "runs" / "seeds")
    lines, run = len(events(project / "runs" / "seeds")), project / f"killed-{number}"
    kill_at = random.Random(number).randint(lines // 4, lines - 4)  # lines of events.jsonl
    command = [sys.executable, "-m", "rlhfctl", "run", "recipe.yaml", "--run-dir", run.name]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and _lines(run / "events.jsonl") < kill_at:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert content(run) != expected, "it was over before the kill"
    before = ran(events(run))
    again = run_here("run", "recipe.yaml", "--run-dir", run.name, cwd=project)
    assert again.returncode == 0, again.stderr
    assert content(run) == expected
    after = events(run)
    started = [index for index, event in enumerate(after) if event["event"] == "run_started"]
    assert not set(before) & set(ran(after[started[-1] :]))  # what was complete is not made again


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


@pytest.mark.ci
def test_a_new_seed_runs_alone_and_one_taken_out_is_told_and_kept(project: Path) -> None:
    run = project / "runs" / "more"
    shutil.copytree(project / "runs" / "seeds", run)
    kept = {file: file.read_bytes() for file in run.glob("seed-*/*/manifest.json")}
    heard = len(events(run))
    added = run_here("run", "recipe.yaml", "--seeds", "0,1,5", "--run-dir", run, cwd=project)
    assert added.returncode == 0, added.stderr
    assert ran(events(run)[heard:]) == ["seed-5/ppo", "seed-5/compare", "summary"]
    assert {file: file.read_bytes() for file in kept} == kept
    assert json.loads((run / "summary" / "summary.json").read_text(encoding="utf-8"))["seeds"] == [0, 1, 5]
    heard = len(events(run))
    fewer = run_here("run", "recipe.yaml", "--seeds", "1,5", "--run-dir", run, cwd=project)
    assert fewer.returncode == 0, fewer.stderr
    assert ran(events(run)[heard:]) == ["summary"]
    told = "kept as they are, and not read, since the recipe's seeds or rounds changed: seed-0/compare, seed-0/ppo"
    assert told in fewer.stdout and (run / "seed-0" / "ppo" / "manifest.json").is_file()
    shown = " ".join(run_here("show", run, cwd=project).stdout.split())
    assert told in shown and "over 2 seeds" in shown
    listed = json.loads(run_here("runs", "runs", "--json", cwd=project).stdout)
    (found,) = [one for one in listed if one["name"] == "more"]
    assert found["state"] == "complete" and found["result"].split(":")[0].endswith("over 2 seeds")
    assert [*found["stages"]] == ["sft", "seed-1/ppo", "seed-1/compare", "seed-5/ppo", "seed-5/compare", "summary"]
    checked = json.loads(run_here("verify", run, "--json", cwd=project).stdout)  # with the seed that was taken out
    assert checked["unchanged"] is True, checked
    assert {one["where"] for one in checked["findings"]} == {*found["stages"], "seed-0/ppo", "seed-0/compare"}
    shutil.rmtree(run / "seed-1" / "ppo")
    shutil.copytree(run / "seed-5" / "ppo", run / "seed-1" / "ppo")
    mixed = run_here("verify", run, cwd=project)
    said = " ".join(mixed.stdout.split())
    assert mixed.returncode == 3 and "it is the record of seed-5/ppo" in said and "seed-1/compare" in said


@pytest.mark.ci
def test_recipes_on_the_same_seeds_sample_the_same_first_batch(project: Path) -> None:
    """Common random numbers: what a recipe changes is all that differs, and it shows once KL is above 0."""
    other = run_here("run", "recipe.yaml", "--run-dir", "kl", "--until", "ppo", "--set", "ppo.kl_coef=5.0", cwd=project)
    assert other.returncode == 0, other.stderr
    for seed in (0, 1):
        folders = [project / name / f"seed-{seed}" / "ppo" / "traces" for name in ("runs/seeds", "kl")]
        one, another = (_ids(folder / "update-000001.jsonl") for folder in folders)
        assert one == another and len(one) == 16
        later, other_later = (_ids(folder / "update-000003.jsonl") for folder in folders)
        assert later != other_later
    seeds = [_ids(project / "kl" / f"seed-{seed}" / "ppo" / "traces" / "update-000001.jsonl") for seed in (0, 1)]
    assert seeds[0] != seeds[1]


def _ids(file: Path) -> list[list[int]]:
    return [json.loads(line)["ids"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_models_of_one_seed_are_exported_and_runs_compared(project: Path) -> None:
    refused = run_here("export", "runs/seeds", "--to", "model", cwd=project)
    assert refused.returncode != 0 and "name one of seed-0/ppo, seed-1/ppo" in refused.stderr
    exported = run_here("export", "runs/seeds", "--stage", "seed-1/ppo", "--to", "model", cwd=project)
    assert exported.returncode == 0, exported.stderr
    assert (project / "model" / "model.safetensors").is_file()
    compared = run_here("compare", "runs/seeds", "--json", cwd=project)
    assert json.loads(compared.stdout)["runs/seeds"]["seeds"] == [0, 1]
    table = run_here("compare", "runs/seeds", cwd=project)
    assert table.returncode == 0 and "all" in table.stdout and "over seeds and prompts" in table.stdout
    (project / "files").mkdir(exist_ok=True)
    refused = run_here("compare", "recipe.yaml", "--policy-samples", "recipe.yaml", "--reference-samples",
                       "recipe.yaml", cwd=project)  # fmt: skip
    assert refused.returncode != 0 and "the same for every seed" in refused.stderr
