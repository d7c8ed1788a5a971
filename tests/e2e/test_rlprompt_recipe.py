"""A tiny variant of recipes/rlprompt.yaml, from sft to prompts.json, with base* and with a masked frozen model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_cli, run_here
from rank_kills import farthest, numbers
from small_models import masked_model

from rlhfctl.models.label_words import LabelWords
from rlhfctl.world.sentiment import FILLERS, LABELS

PAGE = (
    (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8").partition("## prompts.json")[2].partition("## v")[0]
)
TINY = f"""\
extends: {ROOT / "recipes" / "rlprompt.yaml"}
name: tiny-rlprompt
model:
  init: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 700}}
data:
  demonstrations: {{rows: 1500}}
  prompts: {{rows: 60, eval: 4, test: 16}}
sft:
  trainer: {{num_train_epochs: 1, learning_rate: 1e-2, warmup_steps: 2}}
reward:
  prompted_classifier: {{shots: 8}}
ppo:
  total_episodes: 48
  per_device_train_batch_size: 16
  eval: {{every: 1}}
compare: {{samples_per_prompt: 2, controls: none, bootstrap_samples: 200, prompt_search: {{random: 10}}}}
"""


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe, which lies beside it."""
    folder = tmp_path_factory.mktemp("rlprompt")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    result = run_here("run", "tiny.yaml", "--run-dir", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def before_ppo(run: Path, folder: Path) -> Path:
    """A copy of a run with its recipe beside it, and with its sft stage alone."""
    copy = folder / "run"
    copy.mkdir()
    shutil.copytree(run / "sft", copy / "sft")
    shutil.copy(run.parent / "tiny.yaml", folder)
    return copy


@pytest.mark.ci
def test_a_tiny_rlprompt_runs_and_goes_on(finished: Path) -> None:
    run = finished
    metrics = [one["values"] for one in events(run) if one["event"] == "metrics" and one["stage"] == "ppo"]
    train, evaluated = [one for one in metrics if "score" in one], [one for one in metrics if "eval_score" in one]
    assert len(train) == 3 and all(abs(one["score"]) < 1e-5 for one in train)  # z-scores
    assert all(one["eval_score"] == pytest.approx(one["eval_logged/prompt_reward"]) for one in evaluated)
    assert all(0 <= one["logged/accuracy"] <= 1 for one in train)

    manifest = json.loads((run / "ppo" / "manifest.json").read_text())
    assert manifest["parents"]["frozen"] == manifest["parents"]["base"]
    report = json.loads((run / "compare" / "compare.json").read_text())
    assert set(report["judges"]) == {"correct", "prompted_classifier"}
    assert report["judges"]["correct"]["independent"] and not report["judges"]["prompted_classifier"]["independent"]
    rows = [json.loads(line) for line in (run / "compare" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 32 and {row["prompt"] for row in rows} == {"words:"}
    assert all((row["policy_scores"]["prompted_classifier"] > 0) == row["policy_scores"]["correct"] for row in rows)

    prompts = json.loads((run / "compare" / "prompts.json").read_text())
    assert prompts["examples"] == {"chosen_on": 2 * 8 + 4, "test": 16}
    rewards = [one["chosen_on_reward"] for one in prompts["policy"]]
    assert rewards == sorted(rewards, reverse=True) and prompts["search"]["random"]["tried"] == 10
    fields = set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE))
    best, random = prompts["policy"][0], prompts["search"]["random"]
    written = {*prompts, *best, *random, *(f"search.{key}" for key in prompts["search"])} - {"search", "examples"}
    assert fields == written | {f"examples.{key}" for key in prompts["examples"]}
    assert "Prompts found" in (run / "report.html").read_text(encoding="utf-8")

    again = run_here("run", "tiny.yaml", "--run-dir", "run", cwd=run.parent)
    assert again.returncode == 0 and again.stdout.count("unchanged") >= 2, again.stdout

    (run.parent / "rows.jsonl").write_text('{"prompt": "words:", "response": "while"}\n', encoding="utf-8")
    scored = run_here("score", "run", "rows.jsonl", cwd=run.parent)
    assert scored.returncode != 0 and "scores a prompt with labelled examples" in scored.stderr


@pytest.mark.ci
def test_two_processes_score_prompts_as_one(finished: Path, tmp_path: Path) -> None:
    run = before_ppo(finished, tmp_path)
    result = run_cli("run", tmp_path / "tiny.yaml", "--run-dir", run, "--until", "ppo", "--num-processes", 2)
    assert result.returncode == 0, result.stderr
    of_one = {key: values for key, values in numbers(finished).items() if key[0] == "ppo"}
    assert farthest({key: values for key, values in numbers(run).items() if key[0] == "ppo"}, of_one) < 1e-4


@pytest.mark.ci
def test_the_frozen_model_may_be_a_masked_one_from_a_folder(finished: Path, tmp_path: Path) -> None:
    run = before_ppo(finished, tmp_path)
    model, tokenizer = masked_model([*FILLERS, *LABELS.values(), "was", "the", "."], 64)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "bert")
    before = (tmp_path / "bert" / "model.safetensors").read_bytes()
    chosen = ("--set", "reward.prompted_classifier.model=bert", "--set", "ppo.use=best")
    result = run_here("run", "tiny.yaml", "--run-dir", "run", *chosen, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    parents = json.loads((run / "compare" / "manifest.json").read_text())["parents"]
    assert parents["frozen"]["path"].endswith("bert") and parents["frozen"] != parents["reference"]
    assert (tmp_path / "bert" / "model.safetensors").read_bytes() == before
    prompts = json.loads((run / "compare" / "prompts.json").read_text())
    words = LabelWords(model, tokenizer, prompts["template"], prompts["verbalizers"])
    rows = json.loads((run / "compare" / "samples.jsonl").read_text().splitlines()[0])
    assert words.masked and rows["policy_scores"]["prompted_classifier"] != 0
    assert (
        prompts["empty"]["reward"] != json.loads((finished / "compare" / "prompts.json").read_text())["empty"]["reward"]
    )
