"""Reward ensembles in a run: members on one base*, kills between them, how PPO reads them, and active choice.

The world has two letters, and the judge likes the share of the letter a. Two rounds with three members are shared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from conftest import SHARE_OF_A, run_here
from safetensors.torch import load_file

from rlhfctl.artifacts import Artifact, Source, load_artifact
from rlhfctl.data.encoding import Encoder
from rlhfctl.models import scoring, tokenizing
from rlhfctl.models.ensembles import Ensemble
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.rewards.ensemble import aggregated, preference_variance
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import Loader, member_folders
from rlhfctl.stages.ppo import ParentModels
from rlhfctl.tools.score import member_scores, score_responses
from rlhfctl.training.rl.roles import build_roles

RECIPE = """\
name: members
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32, tokens: [a, b]}
lora: {r: 4, lora_alpha: 8, target_modules: all-linear}
data:
  prompts: {source: prompts.jsonl, eval: 4, test: 4}
  demonstrations: {source: demos.jsonl}
sft: {lora: null}
sample: {prompts: 20, temperature: 1.5, candidates: 3}
label: {by: "scores:share_of_a"}
rounds: 2
reward:
  members: 3
  aggregate: variance
  variance_coefficient: 0.25
  trainer: {num_train_epochs: 2, learning_rate: 3e-3, per_device_train_batch_size: 4}
ppo:
  total_episodes: 16
  per_device_train_batch_size: 8
  num_mini_batches: 2
  num_ppo_epochs: 2
  learning_rate: 1e-2
  response_length: 4
  temperature: 1.0
  eval: {every: 1}
compare: {judges: [reward_model], samples_per_prompt: 2, controls: none}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("members")
    prompts = ["".join("ab"[n >> bit & 1] for bit in range(6)) for n in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "demos.jsonl").write_text('{"prompt": "ab", "completion": "ba"}\n' * 8)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "scores.py").write_text(SHARE_OF_A, encoding="utf-8")
    finished = run_here("run", "recipe.yaml", "--run-dir", "run", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def items(run: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / stage / "items.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(made: Artifact) -> dict[str, str]:
    """The hashes of weights and of recorded scores; peft writes the other files in an order of its own."""
    names = [name for name in made.manifest.outputs if name.endswith((".safetensors", "probes.json"))]
    return {name: made.manifest.outputs[name] for name in names}


def loader(run: Path) -> Loader:
    return Loader.of(load_recipe(run / "recipe.yaml").recipe, note=[].append, warn=pytest.fail)


# ---------------------------------------------------------------- what the stage makes


@pytest.mark.ci
def test_each_member_has_its_folder_its_own_weights_and_its_scores(project: Path) -> None:
    made = load_artifact(project / "run" / "reward")
    folders = member_folders(made)
    assert [folder.name for folder in folders] == ["adapter", "member-1", "member-2"]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    names = [name for name in weights[0] if "lora_A" in name or name.endswith("score.weight")]
    assert names and all(not weights[0][name].equal(other[name]) for other in weights[1:] for name in names)
    files = [made.part("probes"), folders[1] / "probes.json", folders[2] / "probes.json"]
    probes = [json.loads(file.read_text()) for file in files]
    assert probes[0]["rows"] == probes[1]["rows"] == probes[2]["rows"]
    assert len({tuple(one["scores"]) for one in probes}) == 3
    metrics, count = made.manifest.metrics, made.manifest.layout["members"]
    assert count == metrics["members"] == 3 and metrics["reward_disagreement"] > 0
    assert {f"heldout_accuracy/member-{number}" for number in range(3)} <= metrics.keys()
    assert sum("is trained on" in note for note in made.manifest.notes) == 3
    assert not (project / "run" / "reward" / "work").exists()


@pytest.mark.ci
def test_the_training_of_all_members_is_one_row_of_steps(project: Path) -> None:
    heard = [event for event in events(project / "run") if event["stage"] == "reward"]
    (started,) = [event for event in heard if event["event"] == "started"]
    steps = [event["step"] for event in heard if event["event"] == "progress"]
    assert started["total_steps"] == steps[-1] == load_artifact(project / "run" / "reward").manifest.metrics["steps"]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.ci
def test_scores_are_those_of_the_members_loaded_one_by_one(project: Path) -> None:
    run, texts = project / "run", [("ab", "aaba"), ("bbab", "bb"), ("ba", "ab")]
    given = loader(run)
    made = load_artifact(run / "reward")
    tokenizer = tokenizing.load_tokenizer(str(made.weights))
    rows = [[*prompt, *response] for prompt, response in (Encoder(tokenizer).pair(*text) for text in texts)]
    each = []
    for folder in member_folders(made):
        model = given.scorer_from_adapter(made.parent("base"), folder)
        each.append(scoring.score_rows(model, rows, tokenizer.pad_token_id))
    assert score_responses(run / "reward", texts) == pytest.approx(aggregated(each, "variance", 0.25), abs=1e-5)
    first = given.load_reward_model(Source.of(made), tokenizer, whole=False)
    assert scoring.score_rows(first, rows, tokenizer.pad_token_id) == pytest.approx(each[0], abs=1e-6)
    together = given.load_reward_model(Source.of(made), tokenizer)
    assert isinstance(together, Ensemble)
    trunks = {id(member.backbone.shared.trunk) for member in together}
    assert len(trunks) == 1  # one copy of base* in memory


@pytest.mark.ci
def test_a_member_whose_weights_were_changed_is_refused(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "run" / "reward" / "member-2" / "adapter_model.safetensors"
    shutil.copyfile(tmp_path / "run" / "reward" / "member-1" / "adapter_model.safetensors", file)
    result = run_here("ppo", "recipe.yaml", "--run-dir", "run", "--force", cwd=tmp_path)
    assert result.returncode != 0 and "member-2/adapter_model.safetensors" in result.stderr, result.stderr
    checked = json.loads(run_here("verify", "run", "--json", cwd=tmp_path).stdout)
    assert checked["unchanged"] is False


@pytest.mark.ci
def test_an_ensemble_is_not_exported_as_one_model(project: Path) -> None:
    for more in ((), ("--adapter",)):
        command = ("export", "run", "--stage", "reward", "--to", "out", *more)
        result = run_here(*command, cwd=project)
        assert result.returncode == 1 and "ensemble of 3 models" in result.stderr, result.stderr
    assert not (project / "out").exists()


# ---------------------------------------------------------------- kills


@pytest.mark.ci
def test_a_kill_between_members_keeps_the_finished_ones(project: Path) -> None:
    run = project / "killed"
    shutil.copytree(project / "run" / "sft", run / "sft")
    for stage in ("sample", "label"):
        shutil.copytree(project / "run" / stage, run / stage)
    command = [sys.executable, "-m", "rlhfctl", "run", "recipe.yaml", "--run-dir", run.name, "--until", "reward"]
    finished = run / "reward" / "work" / "finished" / "member-1" / "member.json"
    with subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not finished.is_file():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert finished.is_file() and not (run / "reward" / "manifest.json").is_file()
    before = {path: path.stat().st_mtime_ns for path in finished.parent.parent.rglob("member.json")}
    again = run_here("run", "recipe.yaml", "--run-dir", run.name, "--until", "reward", cwd=project)
    assert again.returncode == 0, again.stderr
    trained = [note for note in load_artifact(run / "reward").manifest.notes if "is trained on" in note]
    assert len(before) >= 2 and len(trained) == 3 - len(before)
    assert weights(load_artifact(run / "reward")) == weights(load_artifact(project / "run" / "reward"))


# ---------------------------------------------------------------- PPO, compare


@pytest.mark.ci
def test_ppo_reports_how_far_members_differ(project: Path) -> None:
    heard = [event for event in events(project / "run") if event["stage"] == "ppo" and event["event"] == "metrics"]
    updates = [event["values"] for event in heard if event["split"] == "train"]
    evaluated = [event["values"] for event in heard if event["split"] == "eval"]
    assert updates and all(values["reward_disagreement"] > 0 for values in updates)
    assert all(values["eval_reward_disagreement"] > 0 for values in evaluated)


@pytest.mark.ci
@pytest.mark.parametrize("critic", ["adapter", "model"])
def test_members_share_one_backbone_and_the_critic_starts_as_the_first(project: Path, critic: str) -> None:
    run = project / "run"
    recipe = load_recipe(run / "recipe.yaml", (f"ppo.critic={critic}",)).recipe
    sources = {role: Source.of(load_artifact(run / stage)) for role, stage in (("base", "sft"), ("reward", "reward"))}
    ctx = Context("ppo", recipe, RunPaths(run), sources, {}, {}, [].append)
    base = ctx.loader.load_base(sources["base"], to_train=True)
    pad = base.tokenizer.pad_token_id
    assert recipe.ppo is not None
    models = ParentModels(ctx, recipe.ppo, base.tokenizer)
    everyone, reward = build_roles(recipe.ppo, base.model, pad, models, seed=0)
    assert isinstance(reward.scorer, Ensemble) and everyone.critic is not None
    trunks = {id(member.backbone.shared.trunk) for member in reward.scorer}
    assert len(trunks) == 1 and (trunks == {id(everyone.policy.trunk)}) is (critic == "adapter")
    recorded = json.loads((run / "reward" / "probes.json").read_text())
    found = scoring.score_rows(everyone.critic.scorer, recorded["rows"], pad)
    assert found == pytest.approx(recorded["scores"], abs=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize("critic", ["head", "model"])
def test_the_aggregate_changes_ppo_and_not_the_members(project: Path, critic: str) -> None:
    run = project / f"min-{critic}"
    shutil.copytree(project / "run", run)
    heard = len(events(run))
    sets = ("--set", "reward.aggregate=min", "--set", "reward.variance_coefficient=1", "--set", f"ppo.critic={critic}")
    result = run_here("run", "recipe.yaml", "--run-dir", run, "--until", "ppo", *sets, cwd=project)
    assert result.returncode == 0, result.stderr
    later = events(run)[heard:]
    done = [event["stage"] for event in later if event["event"] == "finished" and not event["skipped"]]
    assert done == ["ppo"]
    before = load_artifact(project / "run" / "ppo").manifest.metrics
    after = load_artifact(run / "ppo").manifest.metrics
    assert after["eval_score"] != pytest.approx(before["eval_score"], abs=1e-6)
    first = [
        next(
            event["values"]
            for event in events(place)[start:]
            if event["stage"] == "ppo" and event["event"] == "metrics" and event["split"] == "eval"
        )
        for place, start in ((project / "run", 0), (run, heard))
    ]
    # The same policy before its first update: the worst case is below the mean less a part of the variance.
    assert first[1]["eval_reward_disagreement"] == pytest.approx(first[0]["eval_reward_disagreement"], rel=1e-4)
    assert first[1]["eval_score"] < first[0]["eval_score"]


@pytest.mark.ci
def test_one_member_is_todays_reward_model_to_the_bit(project: Path) -> None:
    """`members: 1` changes neither what is recorded as input nor any weight, and bootstraps nothing."""
    ensemble = "  members: 3\n  aggregate: variance\n  variance_coefficient: 0.25\n"
    assert ensemble in RECIPE
    single = "  members: 1\n  aggregate: mean\n  variance_coefficient: 1.0\n"
    made = []
    for name, keys in (("plain", ""), ("one", single)):
        run = project / name
        (project / f"{name}.yaml").write_text(RECIPE.replace(ensemble, keys).replace(", candidates: 3", ""))
        for stage in ("sft", "sample", "label"):
            shutil.copytree(project / "run" / stage, run / stage)
        result = run_here("run", f"{name}.yaml", "--run-dir", run, "--until", "reward", cwd=project)
        assert result.returncode == 0, result.stderr
        made.append(load_artifact(run / "reward"))
    plain, one = (artifact.manifest for artifact in made)
    assert plain.inputs == one.inputs and weights(made[0]) == weights(made[1])
    assert plain.layout == {"head": True, "probes": "probes.json", "adapter": "adapter"}
    assert not {"members", "aggregate", "variance_coefficient"} & plain.section.keys()
    assert not any("bootstrap" in note for note in plain.notes)


@pytest.mark.ci
def test_each_member_scores_for_itself(project: Path) -> None:
    pairs = [("ab", "aab"), ("ba", "b")]
    each = member_scores(project / "run" / "reward", pairs)
    assert len(each) == 3 and each[0] != each[1] != each[2]
    assert score_responses(project / "run" / "reward", pairs) == pytest.approx(aggregated(each, "variance", 0.25))


# ---------------------------------------------------------------- active choice


@pytest.mark.ci
def test_the_second_round_asks_where_the_members_of_the_first_differ_most(project: Path) -> None:
    run = project / "run"
    first, second = items(run, "sample"), items(run, "round-2/sample")
    assert len(first) == len(second) == 10
    assert all("disagreement" not in row for row in first)
    sampled = load_artifact(run / "round-2" / "sample").manifest
    assert sampled.parents["reward"].path == "reward"
    (note,) = [note for note in sampled.notes if "candidates are asked" in note]
    kept, candidates = (int(word) for word in note.replace(" of ", " ").split()[:2])
    assert kept == 10 < candidates <= 30, note  # a prompt with equal answers is left out
    mean = fmean(row["disagreement"] for row in second)
    assert sampled.metrics["disagreement"] == pytest.approx(mean)
    over_all = float(note.rsplit(", ", 1)[1].split()[0])
    assert mean > over_all
    # By hand: each member's scores of the texts of one question.
    given, made = loader(run), load_artifact(run / "reward")
    tokenizer = tokenizing.load_tokenizer(str(made.weights))
    row = second[0]
    ids = [[*a, *b] for a, b in (Encoder(tokenizer).pair(row["prompt"], one) for one in row["responses"])]
    each = [
        scoring.score_rows(given.scorer_from_adapter(made.parent("base"), folder), ids, tokenizer.pad_token_id)
        for folder in member_folders(made)
    ]
    assert row["disagreement"] == pytest.approx(preference_variance(each), abs=1e-6)


@pytest.mark.ci
def test_no_prompt_is_asked_twice_while_there_are_others(project: Path) -> None:
    prompts = [row["prompt"] for stage in ("sample", "round-2/sample") for row in items(project / "run", stage)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.ci
def test_candidates_without_members_or_rounds_are_refused(project: Path) -> None:
    for key in ("reward.members=1", "rounds=null"):
        sets = ("--set", key, "--set", "reward.aggregate=mean", "--set", "reward.variance_coefficient=1")
        result = run_here("validate", "recipe.yaml", *sets, cwd=project)
        assert result.returncode == 2 and "sample.candidates" in result.stderr + result.stdout
