"""Rewards trained on groups and normalized, in runs: their zero is kept by PPO, by the hand-over and by the export.

Two runs begin from the sft stage of the finished tiny run: k-wise on groups of four with LoRA and the demonstrations'
zero, and best-of-K on all weights with the mean and variance of the reference.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, run_here
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rlhfctl.artifacts import Source, load_artifact
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.data.encoding import Encoder
from rlhfctl.models import scoring, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stages import door
from rlhfctl.stages.loader import Loader
from rlhfctl.tools.export import export

WORDS = ["kind", "good", "fine", "dull", "awful"]  # the best first
KINDS = {
    "demonstrations": ("reward.loss=k_wise", "reward.label_error=0.1", "reward.normalize=demonstrations"),
    "reference": ("reward.loss=best_of_k", "reward.normalize=reference", "reward.lora=null", "ppo.lora=null"),
}
# Runs the README of each folder and prints the scores that its model gives for the kept rows.
SCORED = """
import contextlib, io, json, os, sys
from pathlib import Path
results = []
for folder in map(Path, sys.argv[1:]):
    os.chdir(folder)
    code = Path("README.md").read_text().partition("```python\\n")[2].partition("```")[0]
    space = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, space)
    model, torch = space["model"].eval(), space["torch"]
    with torch.no_grad():
        rows = json.loads(Path("probes.json").read_text())["rows"]
        results.append([model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows])
assert not [name for name in sys.modules if name.partition(".")[0] == "rlhfctl"]
print(json.dumps(results))
"""


def ranked(folder: Path) -> Path:
    rows = [
        {
            "prompt": f"Review {number}: the plot was ",
            "responses": [WORDS[(number + step) % 5] + "." for step in range(4)],
            "scores": [-((number + step) % 5) for step in range(4)],
        }
        for number in range(40)
    ]
    (folder / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "ranked.jsonl"


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    kind, folder = request.param, tmp_path_factory.mktemp("losses")
    ranked(folder)
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "run").mkdir()
    shutil.copytree(tiny_run / "sft", folder / "run" / "sft")
    sets = [*KINDS[kind], "data.preferences={source: ranked.jsonl, heldout: 0.25}", "reward.trainer.logging_steps=1"]
    sets += ["ppo.total_episodes=16"]
    arguments = [part for one in sets for part in ("--set", one)]
    result = run_here("run", "tiny.yaml", "--run-dir", folder / "run", "--until", "ppo", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return kind, folder / "run"


def loaded(run: Path) -> tuple[Any, Any, Any]:
    """The recipe, the tokenizer, and the reward model as later stages load it (its recorded scores are checked)."""
    recipe = load_recipe(run / "recipe.yaml").recipe
    tokenizer = tokenizing.load_tokenizer(str(run / "sft" / "model"))
    loader = Loader.of(recipe, note=lambda text: None, warn=lambda text: None)
    return recipe, tokenizer, loader.load_reward_model(Source.of(load_artifact(run / "reward")), tokenizer)


def test_a_batch_is_groups_and_the_metrics_are_reported(made: tuple[str, Path]) -> None:
    _, run = made
    records = [one for one in read_events(run / "events.jsonl") if one.get("stage") == "reward"]
    settings = next(one for one in records if one["event"] == "started")["settings"]
    assert (settings["groups"], settings["responses"], settings["pairs"]) == (30, 120, 180)
    started = next(one for one in records if one["event"] == "started")
    assert started["total_steps"] == 4  # 30 groups in batches of 8
    values = next(one for one in records if one["event"] == "metrics")["values"]
    assert {"loss", "accuracy", "margin"} <= values.keys()
    section = json.loads((run / "reward" / "manifest.json").read_text())["section"]
    assert section["loss"] in ("k_wise", "best_of_k") and "heldout" not in section


def test_the_zero_is_that_of_the_demonstrations_or_of_the_reference(made: tuple[str, Path]) -> None:
    kind, run = made
    recipe, tokenizer, model = loaded(run)
    notes = load_artifact(run / "reward").manifest.notes
    if kind == "demonstrations":
        rows = door.load_data(recipe.data, recipe.data_seed, ["demonstrations"])["demonstrations"].rows
        ids = [Encoder(tokenizer).demonstration(row)["input_ids"] for row in rows]
        scores = scoring.score_rows(model, ids, tokenizer.pad_token_id)
        assert len(scores) == 96 and abs(statistics.fmean(scores)) < 1e-3 and statistics.pstdev(scores) > 1e-3
        assert any("the mean score of 96 demonstrations is 0" in note for note in notes)
    else:
        assert any("the scores of 256 samples of base* have mean 0 and variance 1" in note for note in notes)
        # PPO's first update samples from the same policy: other samples of the same distribution
        first = next(
            one["values"]
            for one in read_events(run / "events.jsonl")
            if one["event"] == "metrics" and one["stage"] == "ppo" and one["split"] == "train"
        )
        assert abs(first["raw_score"]) < 1.5 and 0.2 < first["raw_score_std"] < 3


def test_the_shift_lies_in_the_files_and_ppo_starts_its_critic_with_it(made: tuple[str, Path]) -> None:
    kind, run = made
    file = "adapter/adapter_model.safetensors" if kind == "demonstrations" else "model/model.safetensors"
    kept = load_file(run / "reward" / file)
    bias = next(value for name, value in kept.items() if name.endswith("score.bias"))
    _, _, model = loaded(run)
    assert bias.shape == (1,) and bias.item() != 0 and model.score.bias.item() == bias.item()
    if kind == "demonstrations":
        critic = load_file(run / "ppo" / "critic" / "adapter_model.safetensors")
        assert critic["base_model.model.score.bias"].item() == pytest.approx(bias.item(), abs=0.2)


@pytest.mark.ci
def test_the_exported_model_gives_the_normalized_scores_without_rlhfctl(made: tuple[str, Path], tmp_path: Path) -> None:
    kind, run = made
    folders = [tmp_path / "merged", *([tmp_path / "adapter"] if kind == "demonstrations" else [])]
    for folder in folders:
        export(run, "reward", folder, adapter=folder.name == "adapter")
        assert "`reward.normalize`" in (folder / "README.md").read_text()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", SCORED, *map(str, folders)]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = json.loads((run / "reward" / "probes.json").read_text())
    for scores in json.loads(done.stdout.splitlines()[-1]):
        assert scores == pytest.approx(kept["scores"], abs=1e-5)
    # transformers alone leaves the shift out: all scores differ by it.
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", num_labels=1).eval()
    bias = load_file(tmp_path / "merged" / "model.safetensors")["score.bias"].item()
    with torch.no_grad():
        bare = [plain(input_ids=torch.tensor([row])).logits.item() + bias for row in kept["rows"]]
    assert bare == pytest.approx(kept["scores"], abs=1e-5)
    # It is a reward model that recipes take, with its shift.
    scored = run_here("score", tmp_path / "merged", run.parent / "ranked-pairs.jsonl", cwd=write_pairs(run))
    assert scored.returncode == 0, scored.stderr
    own = run_here("score", run, run.parent / "ranked-pairs.jsonl", cwd=run.parent)
    theirs = [json.loads(line)["chosen_score"] for line in scored.stdout.splitlines()]
    assert theirs == pytest.approx([json.loads(line)["chosen_score"] for line in own.stdout.splitlines()], abs=1e-5)


def write_pairs(run: Path) -> Path:
    rows = [{"prompt": "Review: the plot was ", "chosen": f"{word}.", "rejected": "bad."} for word in WORDS]
    (run.parent / "ranked-pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run.parent


def test_a_changed_zero_makes_the_stage_again_and_the_same_recipe_does_not(made: tuple[str, Path]) -> None:
    kind, run = made
    again = [part for one in KINDS[kind] for part in ("--set", one)]
    more = ["--set", "data.preferences={source: ranked.jsonl, heldout: 0.25}", "--set", "ppo.total_episodes=16"]
    more += ["--set", "reward.trainer.logging_steps=1"]
    for changed, action in (((), "skip"), (("--set", "reward.normalize=null"), "run")):
        plan = run_here("plan", "tiny.yaml", "--run-dir", run, "--json", *again, *more, *changed, cwd=run.parent)
        assert plan.returncode == 0, plan.stderr
        actions = {stage["name"]: stage["action"] for stage in json.loads(plan.stdout)["stages"]}
        assert (actions["sft"], actions["reward"], actions["ppo"]) == ("skip", action, action)


def test_a_critic_that_starts_as_the_reward_is_exported_with_its_shift(made: tuple[str, Path], tmp_path: Path) -> None:
    kind, run = made
    export(run, "critic", tmp_path / "critic", adapter=kind == "demonstrations")
    code = (tmp_path / "critic" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    space: dict[str, Any] = {}
    exec(code.replace('folder = "."', f"folder = {str(tmp_path / 'critic')!r}"), space)
    model = space["model"].get_base_model() if kind == "demonstrations" else space["model"]
    name = "adapter_model.safetensors" if kind == "demonstrations" else "model.safetensors"
    weights = load_file(run / "ppo" / "critic" / name)
    bias = next(value for key, value in weights.items() if key.endswith("score.bias"))
    assert model.score.bias.item() == bias.item() != 0


def test_the_head_of_a_reward_without_normalization_has_no_bias(tiny_run: Path) -> None:
    kept = load_file(tiny_run / "reward" / "adapter" / "adapter_model.safetensors")
    assert not [name for name in kept if name.endswith("bias")]
    assert "normalize" not in load_artifact(tiny_run / "reward").manifest.section
    assert torch.is_tensor(kept["base_model.model.score.weight"])
