"""Rounds of sample, label, reward and PPO: each goes on from the last; kills change nothing, people are waited for."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SHARE_OF_A, run_here
from peft import TaskType
from safetensors.torch import load_file

from rlhfctl import fs, graph
from rlhfctl.artifacts import Artifact, Source, load_artifact
from rlhfctl.labels.desk import Desk
from rlhfctl.models import adapters, scoring
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stages import reward
from rlhfctl.stages.loader import Loader
from rlhfctl.tools.label import find, open_desk

RECIPE = """\
name: rounds
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32, tokens: [a, b]}
data:
  prompts: {source: prompts.jsonl, eval: 4, test: 4}
sample: {prompts: 36, temperature: 1.5}
label: {by: "scores:share_of_a"}
rounds: 3
reward: {lora: null, trainer: {num_train_epochs: 2, learning_rate: 3e-3, per_device_train_batch_size: 4}}
ppo:
  lora: null
  total_episodes: 16
  per_device_train_batch_size: 8
  num_mini_batches: 2
  num_ppo_epochs: 2
  learning_rate: 1e-2
  response_length: 4
  temperature: 1.0
  kl_coef: 0.2
  eval: {every: 0}
compare: {judges: [reward_model], samples_per_prompt: 2, controls: none}
"""
STAGES = [
    "base", "sample", "label", "reward", "ppo", "round-2/sample", "round-2/label", "round-2/reward", "round-2/ppo",
    "round-3/sample", "round-3/label", "round-3/reward", "round-3/ppo", "compare",
]  # fmt: skip
KILLS = 8
LORA = "{r: 4, lora_alpha: 8, target_modules: all-linear}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    prompts = ["".join("ab"[n >> bit & 1] for bit in range(6)) for n in range(48)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "scores.py").write_text(SHARE_OF_A, encoding="utf-8")
    finished = run_here("run", "recipe.yaml", "--run-dir", "run", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder


def artifact(run: Path, stage: str) -> Artifact:
    return load_artifact(run / stage)


def rows(made: Artifact, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.part(part).read_text(encoding="utf-8").splitlines()]


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def ran(heard: list[dict[str, Any]]) -> list[str]:
    return [event["stage"] for event in heard if event["event"] == "finished" and not event["skipped"]]


def made_by(run: Path) -> dict[str, dict[str, str]]:
    """The hashes of what each stage made, but for files of times."""
    folders = [path.parent for path in run.rglob("manifest.json") if "superseded" not in path.parts]
    return {
        folder.relative_to(run).as_posix(): {
            name: value
            for name, value in load_artifact(folder).manifest.outputs.items()
            if name.endswith((".safetensors", ".jsonl")) and "traces" not in name
        }
        for folder in folders
    }


# ---------------------------------------------------------------- what a round is made from


def test_each_round_goes_on_from_the_one_before(project: Path) -> None:
    run = project / "run"
    assert ran(events(run)) == STAGES
    first, second, third = (artifact(run, place) for place in ("ppo", "round-2/ppo", "round-3/ppo"))
    assert "start" not in first.manifest.parents
    assert second.manifest.parents["start"].fingerprint == first.fingerprint
    assert third.manifest.parents["start"].fingerprint == second.fingerprint
    assert {one.manifest.parents["base"].path for one in (first, second, third)} == {"base"}
    assert third.manifest.parents["reward"].path == "round-3/reward"
    assert any("goes on from round-2/ppo" in note for note in third.manifest.notes)
    compared = artifact(run, "compare").manifest.parents
    assert (compared["policy"].path, compared["reference"].path) == ("round-3/ppo", "base")
    sampled = [artifact(run, place) for place in ("sample", "round-2/sample")]
    assert [one.manifest.parents.keys() for one in sampled] == [{"base"}, {"base", "policy"}]
    assert {origin for row in rows(sampled[1], "items") for origin in row["origins"]} == {"ppo"}


def test_each_round_asks_other_prompts_and_keeps_the_labels_of_earlier_ones(project: Path) -> None:
    run = project / "run"
    items = [rows(artifact(run, place), "items") for place in ("sample", "round-2/sample", "round-3/sample")]
    prompts = [{row["prompt"] for row in found} for found in items]
    assert [len(found) for found in prompts] == [12, 12, 12] and len(set.union(*prompts)) == 36
    labels = [rows(artifact(run, place), "data") for place in ("label", "round-2/label", "round-3/label")]
    for before, after in pairwise(labels):
        assert after[: len(before)] == before and len(after) > len(before)
    last = labels[-1]
    assert {row["round"] for row in last} == {1, 2, 3}
    for row in last:
        shares = [response.count("a") for response in row["responses"]]
        better = shares.index(max(shares))
        assert row["ranks"][better] == 0 and row["annotator"].startswith("scores:share_of_a (")


def test_a_finished_run_is_skipped_as_a_whole_and_verified(project: Path) -> None:
    heard = len(events(project / "run"))
    again = run_here("run", "recipe.yaml", "--run-dir", "run", cwd=project)
    assert again.returncode == 0, again.stderr
    assert ran(events(project / "run")[heard:]) == []
    checked = json.loads(run_here("verify", "run", "--json", cwd=project).stdout)
    assert checked["unchanged"] is True, checked
    assert {one["where"] for one in checked["findings"] if one["state"] == "ok"} >= set(STAGES)


def test_the_policy_of_the_last_round_is_exported_and_shown(project: Path) -> None:
    for name, folder in (("ppo", "round-3/ppo"), ("round-1/ppo", "ppo")):
        to = project / f"exported-{folder.replace('/', '-')}"
        exported = run_here("export", "run", "--stage", name, "--to", to, cwd=project)
        assert exported.returncode == 0, exported.stderr
        trained = load_file(project / "run" / folder / "model" / "model.safetensors")
        found = load_file(to / "model.safetensors")
        assert all(torch.equal(found[key], trained[key]) for key in found)
    shown = run_here("tokens", "run", cwd=project)
    assert "round-3/ppo" in shown.stdout + shown.stderr  # it traced no update


@pytest.mark.ci
def test_one_round_less_compares_the_policy_of_the_last_one_left(project: Path) -> None:
    run = project / "fewer"
    shutil.copytree(project / "run", run)
    heard = len(events(run))
    fewer = run_here("run", "recipe.yaml", "--run-dir", run, "--set", "rounds.count=2", "--set", "sample.prompts=24",
                     cwd=project)  # fmt: skip
    assert fewer.returncode == 0, fewer.stderr
    assert "rounds changed: round-3/label, round-3/ppo, round-3/reward, round-3/sample" in fewer.stdout
    assert "compare" in ran(events(run)[heard:])
    assert artifact(run, "compare").manifest.parents["policy"].path == "round-2/ppo"
    assert (run / "round-3" / "ppo" / "manifest.json").is_file()


@pytest.mark.ci
@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, KILLS))])
def test_a_kill_at_a_random_moment_changes_nothing(project: Path, number: int) -> None:
    expected = made_by(project / "run")
    run, lines = project / f"killed-{number}", len(events(project / "run"))
    kill_at = random.Random(number).randint(lines // 10, lines * 9 // 10)
    command = [sys.executable, "-m", "rlhfctl", "run", "recipe.yaml", "--run-dir", run.name]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (run / "events.jsonl").is_file():
            time.sleep(0.01)
        while process.poll() is None and (run / "events.jsonl").read_bytes().count(b"\n") < kill_at:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert made_by(run) != expected, "it was over before the kill"
    again = run_here("run", "recipe.yaml", "--run-dir", run.name, cwd=project)
    assert again.returncode == 0, again.stderr
    assert made_by(run) == expected


# ---------------------------------------------------------------- people


def answer(desk: Desk, annotator: str, most: int = 10_000) -> int:
    """Answer questions as a person who likes the letter a; returns how many."""
    given = 0
    while given < most and (question := desk.next(annotator)) is not None:
        shares = [-str(response).count("a") for response in question.shown]
        levels = sorted(set(shares))
        desk.answer(annotator, question.key, "label", [levels.index(share) for share in shares])
        given += 1
    return given


@pytest.mark.ci
def test_a_run_waits_for_people_and_goes_on_with_their_labels(project: Path) -> None:
    run = project / "people"
    command = ["run", "recipe.yaml", "--run-dir", run, "--set", "label.by=people", "--set", "rounds.count=2",
               "--set", "sample.prompts=24"]  # fmt: skip
    waits = run_here(*command, cwd=project)
    assert waits.returncode == 7 and "0 of 12 answers are given" in waits.stderr, waits.stderr
    assert f"rlhfctl label {run}" in waits.stderr and "--web" in waits.stderr
    shown = run_here("show", run, cwd=project).stdout
    assert "waiting" in shown
    with open_desk(find(run)) as desk:
        assert answer(desk, "ana", 5) == 5
    again = run_here(*command, cwd=project)
    assert again.returncode == 7 and "5 of 12 answers are given" in again.stderr
    with open_desk(find(run)) as desk:
        assert answer(desk, "bo") == 7
    second = run_here(*command, cwd=project)
    assert second.returncode == 7 and "0 of 12 answers are given" in second.stderr
    assert (run / "ppo" / "manifest.json").is_file() and (run / "round-2" / "sample" / "manifest.json").is_file()
    with open_desk(find(run)) as desk:
        assert {item.origins for item in desk.items} == {("ppo", "ppo")}
        assert answer(desk, "ana") == 12
    done = run_here(*command, cwd=project)
    assert done.returncode == 0, done.stderr
    last = rows(artifact(run, "round-2/label"), "data")
    assert {row["annotator"] for row in last} == {"ana", "bo"}
    stats = json.loads(run_here("label", run, "--stats", "--json", cwd=project).stdout)
    assert stats["labels"] == 12 and stats["open_answers"] == 0
    # The same labels from a file lead to the same weights: nothing but the labels decides.
    exported = run_here("label", "export", run, "--to", "labels.jsonl", "--format", "rankings", cwd=project)
    assert exported.returncode == 0 and len((project / "labels.jsonl").read_text().splitlines()) == 12


@pytest.mark.ci
def test_enough_answers_let_the_run_go_on(project: Path) -> None:
    run = project / "enough"
    command = ["run", "recipe.yaml", "--run-dir", run, "--until", "label", "--set", "label={by: people, enough: 0.5}"]
    assert run_here(*command, cwd=project).returncode == 7
    with open_desk(find(run)) as desk:
        answer(desk, "ana", 6)
    assert run_here(*command, cwd=project).returncode == 0
    assert artifact(run, "label").manifest.metrics["answers"] == 6


@pytest.mark.ci
def test_old_labels_can_be_dropped(project: Path) -> None:
    run = project / "dropped"
    for stage in ("base", "sample", "label", "reward", "ppo"):
        shutil.copytree(project / "run" / stage, run / stage)
    result = run_here("run", "recipe.yaml", "--run-dir", run, "--until", "round-2/label", "--set", "label.old=0",
                      cwd=project)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {row["round"] for row in rows(artifact(run, "round-2/label"), "data")} == {2}


# ---------------------------------------------------------------- reward models that go on


@pytest.mark.ci
@pytest.mark.parametrize("lora", ["null", LORA])
def test_each_reward_model_goes_on_from_the_one_before(lora: str, project: Path) -> None:
    """It starts with the scores that the one before was saved with, and none of its prompts is held out later."""
    run = project / f"warm-{lora == LORA}"
    options = [
        "rounds={count: 2, reward: last, reference: last}",
        f"reward.lora={lora}",
        "model.init.tie_word_embeddings=false",
    ]
    if lora != "null":  # adapters need trained weights below them
        (project / "demos.jsonl").write_text('{"prompt": "ab", "completion": "ba"}\n' * 8)
        options += ["data.demonstrations={source: demos.jsonl}", "sft={lora: null}"]
    sets = [part for option in options for part in ("--set", option)]
    result = run_here("run", "recipe.yaml", "--run-dir", run, "--until", "round-2/reward", *sets, cwd=project)
    assert result.returncode == 0, result.stderr
    first, second = artifact(run, "reward"), artifact(run, "round-2/reward")
    assert "start" not in first.manifest.parents
    assert second.manifest.parents["start"].fingerprint == first.fingerprint
    assert second.manifest.parents["base"] == first.manifest.parents["base"]  # not the policy, which is PPO's reference
    assert "the reward model goes on from reward" in second.manifest.notes
    recipe = load_recipe(run / "recipe.yaml").recipe
    model, tokenizer, _ = Loader.of(recipe, note=print, warn=print).new_scorer(
        Source.of(artifact(run, "base" if recipe.sft is None else "sft")), seed=7
    )
    if recipe.reward is not None and recipe.reward.lora is not None:
        model = adapters.add_lora(model, recipe.reward.lora, TaskType.SEQ_CLS, seed=7)
    recorded = json.loads(first.part("probes").read_text(encoding="utf-8"))
    new = scoring.score_rows(model, recorded["rows"], tokenizer.pad_token_id)
    assert new != pytest.approx(recorded["scores"], abs=1e-3)
    context: Any = SimpleNamespace(parents={"start": Source.of(first)}, recipe=recipe, note=lambda text: None)
    reward._go_on(model, 0, context)
    went_on = scoring.score_rows(model, recorded["rows"], tokenizer.pad_token_id)
    assert went_on == pytest.approx(recorded["scores"], abs=1e-5)


def test_only_reward_models_that_go_on_have_steady_splits_and_a_start(project: Path) -> None:
    """A change of the setting therefore makes the first reward model anew, too."""
    for value, steady in (("base", False), ("last", True)):
        recipe = load_recipe(project / "recipe.yaml", overrides=["rounds.count=2", f"rounds.reward={value}"]).recipe
        parents = graph.STAGES["reward"].parents["start"]
        assert recipe.has_steady_splits == steady == parents.used(recipe)  # type: ignore[misc]
        assert ("rounds.reward" in graph.STAGES["reward"].settings(recipe)) == steady  # type: ignore[misc]


# ---------------------------------------------------------------- the reference, and adapters


@pytest.mark.ci
@pytest.mark.parametrize(
    ("reference", "lora"),
    [
        ("base", LORA),
        *(pytest.param(*one, marks=pytest.mark.ci) for one in (("base", "null"), ("last", "null"), ("last", LORA))),
    ],
)
def test_policies_with_and_without_adapters_go_on(reference: str, lora: str, project: Path) -> None:
    run = project / f"{reference}-{len(lora)}"
    options = [f"ppo.lora={lora}", f"reward.lora={lora}", f"rounds={{count: 2, reference: {reference}}}",
               "model.init.tie_word_embeddings=false", "sample.prompts=16", "compare=null"]  # fmt: skip
    sets = [part for option in options for part in ("--set", option)]
    if lora != "null":  # adapters need trained weights below them
        (project / "demos.jsonl").write_text('{"prompt": "ab", "completion": "ba"}\n' * 8)
        sets += ["--set", "data.demonstrations={source: demos.jsonl}", "--set", "sft={lora: null}"]
    result = run_here("run", "recipe.yaml", "--run-dir", run, *sets, cwd=project)
    assert result.returncode == 0, result.stderr
    base = "base" if lora == "null" else "sft"
    second = artifact(run, "round-2/ppo").manifest
    assert second.parents["base"].path == (base if reference == "base" else "ppo")
    assert ("start" in second.parents) is (reference == "base")
    to = project / f"{run.name}-exported"
    exported = run_here("export", run, "--to", to, cwd=project)
    assert exported.returncode == 0, exported.stderr
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(to)
    assert fs.hash_tree(to) and sum(parameter.numel() for parameter in model.parameters()) > 0
