"""A policy of one layer and seven tokens, and samples of it, for the tests of generation."""

from __future__ import annotations

from typing import Any

import torch

from rlhfctl.generation import local
from rlhfctl.generation.generator import Response, Sampling
from rlhfctl.models import build, special_tokens, tokenizing
from rlhfctl.recipe.schema import Init

PROMPTS = [[2, 3], [4], [5, 6, 2, 3], [2, 3], [6], [3, 3, 3]]


def tiny(seed: int = 1, architecture: str = "llama") -> tuple[Any, Any]:
    init = Init(
        architecture=architecture,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tokens=list("abcde"),
    )
    tokenizer = tokenizing.train_tokenizer(init, [])
    model = build.build_model(init, tokenizer, seed=seed, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(
            12
        )  # decided enough for greedy and sampled to differ by more than noise
    special_tokens.mask_pad(model, tokenizer.pad_token_id)
    return tokenizer, model


def sampled(model: Any, tokenizer: Any, **changes: Any) -> list[Response]:
    values: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "batch_size": 4, "seed": 5}
    return local.sample(model, PROMPTS, tokenizer, Sampling(**values | changes))
