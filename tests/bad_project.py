"""A project of the smallest size that is right in everything, for tests that make one thing wrong in it.

Used by test_bad_input.py (one wrong thing at a time, messages word for word) and campaigns/fuzz.py (many, at random).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import MANIFEST, WORK, load_artifact

STAGES = ("base", "sft", "reward", "ppo", "compare")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
RECIPE = """\
name: mine
seed: 0
model:
  path: ./model
data:
  demonstrations: {source: demos.jsonl}
  preferences: {source: pairs.jsonl, heldout: 0.25}
  prompts: {source: prompts.jsonl, eval: 2, test: 4}
sft:
  trainer: {max_steps: 1, per_device_train_batch_size: 4}
reward:
  trainer: {max_steps: 1, per_device_train_batch_size: 4}
ppo:
  total_episodes: 4
  per_device_train_batch_size: 4
  num_ppo_epochs: 1
  response_length: 4
  kl_coef: 0.1
compare: {judges: [reward_model], samples_per_prompt: 1, bootstrap_samples: 100}
"""
WORDS = ["red", "green", "blue", "small", "large", "round", "flat", "old", "new", "warm", "cold", "loud"]


def demonstrations() -> list[dict[str, Any]]:
    return [{"prompt": f"number {n} is", "completion": f" {WORDS[n % 12]} and {WORDS[n % 7]}"} for n in range(8)]


def preferences() -> list[dict[str, Any]]:
    return [
        {"prompt": f"number {n} is", "chosen": f" {WORDS[n % 12]}, thanks", "rejected": f" {WORDS[n % 5]}"}
        for n in range(8)
    ]


def prompts() -> list[dict[str, Any]]:
    return [{"prompt": f"number {n} is"} for n in range(12)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path, *, hidden_size: int = 8, vocab_size: int = 270, seed: int = 0) -> None:
    """A Hugging Face folder of a causal language model that loads in no time."""
    import torch

    from rlhfctl.models import build, tokenizing
    from rlhfctl.recipe.schema import Init

    init = Init(
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=vocab_size,
        max_position_embeddings=64,
    )
    tokenizer = tokenizing.train_tokenizer(init, [json.dumps(row) for row in demonstrations()])
    model = build.build_model(init, tokenizer, seed=seed, dtype=torch.float32)
    folder.mkdir(parents=True)
    build.save_model(model, tokenizer, folder)


def write_project(folder: Path) -> None:
    """Recipe, data and model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    write_jsonl(folder / "demos.jsonl", demonstrations())
    write_jsonl(folder / "pairs.jsonl", preferences())
    write_jsonl(folder / "prompts.jsonl", prompts())
    write_model(folder / "model")


def half_written(run: Path, *, stopped: bool = False) -> list[str]:
    """What a run folder holds that it must not: a stage is complete and verifies, or there are only its checkpoints.

    `stopped`: by a signal or a full disk while it published; then whole parts may wait there for their manifest, and
    hidden files for the next attempt to replace them.
    """
    found = []
    for stage in STAGES:
        folder = run / stage
        if (folder / MANIFEST).is_file():
            load_artifact(folder).verify()
        elif folder.is_dir() and not stopped:
            found += [str(path.relative_to(run)) for path in folder.iterdir() if path.name != WORK]
        elif folder.exists() and not folder.is_dir():
            found.append(stage)
    return found
