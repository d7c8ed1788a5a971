"""Descriptions of models of two layers, for the tests of the memory planner."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from rlhfctl.planning.memory import ModelSpec

VOCABULARY, WIDTH, LAYERS = 96, 32, 3


def shape(family: str = "llama", **more: Any) -> ModelSpec:
    size = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    if family == "llama":
        size |= {"intermediate_size": 48, "num_key_value_heads": 4}
    config = AutoConfig.for_model(family, **size, max_position_embeddings=64, tie_word_embeddings=True)
    return ModelSpec(config, **({"dtype": torch.float32} | more))
