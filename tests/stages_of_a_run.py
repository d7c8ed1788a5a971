"""A recipe with all stages, and complete stages made up on disk: for tests of what a run decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import Artifact, Source, publish_manifest
from rlhfctl.recipe.load import LoadedRecipe, load_recipe

RECIPE = """\
name: plan
model: {init: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, vocab_size: 300}}
data:
  demonstrations: {source: "builtin:reviews", rows: 20}
  preferences: {source: "builtin:reviews", rows: 20}
  prompts: {source: "builtin:reviews", rows: 100, eval: 5, test: 10}
sft: {}
reward: {}
ppo: {per_device_train_batch_size: 16}
compare: {judges: [gold, "scores:length"], primary_judge: gold}
"""
NAMES = ["sft", "reward", "ppo", "compare"]


def recipe_at(folder: Path, *changes: str, text: str = RECIPE) -> LoadedRecipe:
    (folder / "plan.yaml").write_text(text)
    if not (folder / "scores.py").exists():
        (folder / "scores.py").write_text("def length(prompts, completions): return [len(c) for c in completions]\n")
    return load_recipe(folder / "plan.yaml", changes)


def publish(
    folder: Path, *, parents: Mapping[str, Source] | None = None, text: str = "weights", **changes: Any
) -> Artifact:
    """A complete stage with two files, its checkpoints and a leftover of a kill."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "weights").write_text(text)
    (folder / "work").mkdir(exist_ok=True)
    (folder / "work" / "checkpoint").write_text("not handed over")
    (folder / ".model.partial").write_text("torn")
    given: dict[str, Any] = {
        "stage": folder.name,
        "inputs": {"section": "1", "seed": "0"},
        "parents": parents or {},
        "section": {"lora": None},
        "layout": {"model": "model", "head": True},
        "seed": 0,
        "seconds": 1.5,
        "metrics": {"loss": 0.25},
    }
    return publish_manifest(folder, **given | changes)
