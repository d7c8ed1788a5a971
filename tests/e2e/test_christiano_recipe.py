"""A tiny variant of recipes/christiano.yaml: each round asks about what the policy writes then."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli

from rlhfctl.artifacts import load_artifact

RECIPE = ROOT / "recipes" / "christiano.yaml"
TINY = """\
extends: christiano.yaml
name: tiny-christiano
model:
  init: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 700}
data:
  demonstrations: {rows: 600}
  prompts: {rows: 160, eval: 4, test: 8}
sft:
  trainer: {num_train_epochs: 1, learning_rate: 1e-2, warmup_steps: 2}
sample: {prompts: 24}
label: {by: "scores:length", noise: 0.1}  # what so small a model writes is worth nothing to the built-in judge
rounds: {count: 2, labels: [0.25, 0.75]}
ppo: {total_episodes: 16, per_device_train_batch_size: 8, eval: {every: 2}}
compare: {samples_per_prompt: 2, controls: none, bootstrap_samples: 200}
"""


def items(run: Path, stage: str) -> list[dict[str, Any]]:
    made = load_artifact(run / stage)
    return [json.loads(line) for line in made.part("items").read_text(encoding="utf-8").splitlines()]


@pytest.mark.ci
def test_a_tiny_christiano_asks_in_each_round_and_waits_for_people(here: Cli, tmp_path: Path) -> None:
    shutil.copy(RECIPE, tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (tmp_path / "scores.py").write_text("def length(prompts, completions): return [len(one) for one in completions]\n")
    result = here("run", "tiny.yaml", "--run-dir", "run")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"

    asked = [items(run, stage) for stage in ("sample", "round-2/sample")]
    assert [len(rows) for rows in asked] == [6, 18]
    assert "disagreement" not in asked[0][0] and all("disagreement" in row for row in asked[1])
    writers = [{writer for row in rows for writer in row["origins"]} for rows in asked]
    assert writers == [{"sft"}, {"ppo"}]
    prompts = [row["prompt"] for rows in asked for row in rows]
    assert len(set(prompts)) == len(prompts)

    rewards = [load_artifact(run / stage).manifest for stage in ("reward", "round-2/reward")]
    assert all(one.metrics["members"] == 3 for one in rewards)
    assert rewards[1].parents["start"].path == "reward" and "start" not in rewards[0].parents
    notes = "\n".join(rewards[1].notes)
    assert notes.count("mean 0 and variance 1") == 3 and notes.count("a bootstrap of their prompts") == 3
    assert load_artifact(run / "round-2" / "ppo").manifest.parents["start"].path == "ppo"
    heard = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    (began,) = [event for event in heard if event["event"] == "started" and event["stage"] == "ppo"]
    assert began["settings"]["algorithm"] == "a2c"
    verdict = json.loads((run / "compare" / "compare.json").read_text())
    assert verdict["judges"]["gold"]["independent"] is True

    waiting = here("run", "tiny.yaml", "--run-dir", "run", "--set", "label.by=people", "--until", "label")
    assert waiting.returncode == 7 and "0 of 6 answers are given" in waiting.stderr + waiting.stdout


def test_people_take_the_place_of_the_judge_as_the_recipe_says(here: Cli) -> None:
    (said,) = re.findall(r"--set label\.by=people .*?(?=  )", RECIPE.read_text())
    assert here("validate", "christiano", *said.split()).returncode == 0
