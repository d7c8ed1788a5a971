"""Helpers of tests of one stage: a context with a small recipe, a tokenizer and a model of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl.events import Event
from rlhfctl.models import build, tokenizing
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.schema import Init, Recipe
from rlhfctl.stages.context import Context

INIT = Init(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32, tokens=["a", "b", " "]
)


def small_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer with one token per letter."""
    return tokenizing.train_tokenizer(INIT, [])


def small_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    return build.build_model(INIT, tokenizer, seed=seed, dtype=torch.float32)


def context(folder: Path, stage: str, events: list[Event], **changes: Any) -> Context:
    """A context of a stage in the run folder `folder`, without parents or data."""
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "model": {"init": INIT.model_dump(exclude_none=True)},
            "data": {
                "preferences": {"source": "builtin:reviews", "rows": 30},
                "prompts": {"source": "prompts.jsonl", "eval": 4, "test": 4},
            },
            "reward": {},
            "ppo": {"lora": None, "response_length": 4, "kl_coef": 0.5, "use": "best", "eval": {"every": 2}},
        }
    )
    return Context(stage, recipe, RunPaths(folder), {}, {"seed": "0"}, {}, events.append, **changes)
