"""`sft.choose`: base* is the checkpoint whose samples score best, whatever stops the training on its way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_here
from safetensors.torch import load_file

from rlhfctl import fs
from rlhfctl.artifacts import load_artifact

# All demonstrations are of b: the share of a falls with every step, and a function that likes some a peaks on the way.
RECIPE = """\
name: letters
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32, tokens: [a, b]}
data:
  demonstrations: {source: demonstrations.jsonl}
  prompts: {source: prompts.jsonl, eval: 16, test: 4}
sft:
  lora: null
  checkpoint_steps: 3
  choose: {by: "scores:some_a", every: 2, max_new_tokens: 6}
  trainer:
    {num_train_epochs: 4, learning_rate: 5e-3, lr_scheduler_type: constant, per_device_train_batch_size: 8}
"""
SCORES = """\
from pathlib import Path

def some_a(prompts, completions):
    if Path("stop").is_file() and len(Path("asked").read_text()) == 2:
        raise RuntimeError("out of order")
    with open("asked", "a") as asked:
        asked.write(".")
    share = sum(text.count("a") for text in completions) / sum(map(len, completions))
    return [-abs(share - 0.2)] * len(completions)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    rows = [{"prompt": "ab"[n % 2] * (1 + n // 8), "completion": "b" * (1 + n % 4)} for n in range(32)]
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = ["ab"[n % 2] * (1 + n // 2) for n in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "letters.yaml").write_text(RECIPE)
    (folder / "scores.py").write_text(SCORES)
    finished = run_here("sft", "letters.yaml", "--run-dir", "run", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    (folder / "said.txt").write_text(finished.stdout)
    return folder


def candidates(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "sft" / "choice.json").read_text().splitlines()]


def weights(run: Path) -> str:
    return fs.hash_file(run / "sft" / "model" / "model.safetensors")


def test_the_best_candidate_is_on_the_way_and_its_weights_are_those_of_a_training_that_ends_there(
    project: Path,
) -> None:
    rows = candidates(project / "run")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16]
    best = max(rows, key=lambda row: row["eval_score"])
    assert [row["step"] for row in rows if row["chosen"]] == [best["step"]] and best["step"] < 16
    made = load_artifact(project / "run" / "sft").manifest
    assert made.metrics["chosen_step"] == best["step"] and made.layout["choice"] == "choice.json"
    assert made.metrics["last_score"] < made.metrics["chosen_score"] and made.metrics["steps"] == 16
    assert f"that of step {best['step']} scores best" in (project / "said.txt").read_text()
    shorter = ("--set", "sft.choose=null", "--set", f"sft.trainer.max_steps={best['step']}")
    assert run_here("sft", "letters.yaml", "--run-dir", "shorter", *shorter, cwd=project).returncode == 0
    assert weights(project / "shorter") == weights(project / "run")
    last = run_here("sft", "letters.yaml", "--run-dir", "last", "--set", "sft.choose=null", cwd=project)
    assert last.returncode == 0 and weights(project / "last") != weights(project / "run")


def test_a_training_that_was_stopped_goes_on_and_chooses_the_same(project: Path) -> None:
    (project / "asked").write_text("")
    (project / "stop").touch()
    failed = run_here("sft", "letters.yaml", "--run-dir", "stopped", cwd=project)
    (project / "stop").unlink()
    assert failed.returncode == 6 and "out of order" in failed.stderr
    left = json.loads((project / "stopped" / "sft" / "work" / "choice.json").read_text())
    assert [one["step"] for one in left["tried"]] == [2, 4]
    resumed = run_here("sft", "letters.yaml", "--run-dir", "stopped", cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    assert len((project / "asked").read_text()) == 8  # from step 3 on: step 4 is not asked about again
    assert weights(project / "stopped") == weights(project / "run")
    assert candidates(project / "stopped") == candidates(project / "run")
    assert not (project / "stopped" / "sft" / "work").exists()


def test_held_out_rows_are_not_trained_on_and_their_loss_can_choose(project: Path) -> None:
    overfit = ("--set", "data.demonstrations.heldout=0.25", "--set", "sft.trainer.num_train_epochs=40")
    by = ("--set", "sft.choose={by: heldout_loss, every: 20, max_new_tokens: null}", *overfit)
    made = run_here("sft", "letters.yaml", "--run-dir", "heldout", *by, cwd=project)
    assert made.returncode == 0, made.stderr
    rows = candidates(project / "heldout")
    best = min(rows, key=lambda row: row["eval_loss"])
    assert best["chosen"] and best["eval_score"] == pytest.approx(-best["eval_loss"])
    found = load_artifact(project / "heldout" / "sft").manifest.metrics
    assert found["eval_loss"] == pytest.approx(best["eval_loss"]) and found["chosen_step"] == best["step"]
    watched = run_here("sft", "letters.yaml", "--run-dir", "watched", "--set", "sft.choose=null", *overfit, cwd=project)
    assert watched.returncode == 0, watched.stderr
    events = [json.loads(line) for line in (project / "watched" / "events.jsonl").read_text().splitlines()]
    started = next(one for one in events if "settings" in one)
    assert started["settings"]["rows"] < 32
    losses = [one["values"]["eval_loss"] for one in events if "eval_loss" in one.get("values", {})]
    assert len(losses) == 40  # after each epoch
    last = load_artifact(project / "watched" / "sft").manifest.metrics["eval_loss"]
    assert last == pytest.approx(losses[-1])


def test_a_model_of_the_same_run_cannot_choose(project: Path) -> None:
    (project / "same" / "reward").mkdir(parents=True)
    shutil.copytree(project / "run" / "sft", project / "same" / "reward", dirs_exist_ok=True)  # any complete stage
    by = ("--set", "sft.choose={by: same/reward, every: 2}")
    refused = run_here("sft", "letters.yaml", "--run-dir", "same", *by, cwd=project)
    assert refused.returncode != 0 and "same/reward is of this run" in refused.stderr, refused.stderr
    assert "sft.choose.by" in refused.stderr and "--run-dir elsewhere" in refused.stderr


def test_another_scorer_is_another_base(project: Path) -> None:
    shutil.copytree(project / "run", project / "again")
    same = run_here("sft", "letters.yaml", "--run-dir", "again", cwd=project)
    assert same.returncode == 0 and "already complete" in same.stdout
    (project / "scores.py").write_text(SCORES.replace("0.2", "0.0"))
    other = run_here("sft", "letters.yaml", "--run-dir", "again", cwd=project)
    (project / "scores.py").write_text(SCORES)
    assert other.returncode == 0 and "functions" in other.stdout, other.stderr
    assert weights(project / "again") != weights(project / "run")


@pytest.mark.ci
@pytest.mark.parametrize("shard", ["false", "true"])
def test_several_processes_choose_the_same(project: Path, shard: str) -> None:
    run, launch = f"several-{shard}", f"launch={{num_processes: 2, shard: {shard}}}"
    made = run_here("sft", "letters.yaml", "--run-dir", run, "--set", launch, cwd=project)
    assert made.returncode == 0, made.stderr
    ours, theirs = candidates(project / "run"), candidates(project / run)
    assert [(row["step"], row["chosen"]) for row in theirs] == [(row["step"], row["chosen"]) for row in ours]
    assert [row["eval_score"] for row in theirs] == pytest.approx([row["eval_score"] for row in ours])
    plain, divided = (load_file(project / name / "sft" / "model" / "model.safetensors") for name in ("run", run))
    for name, weight in plain.items():
        assert torch.allclose(weight, divided[name], atol=1e-5), name
