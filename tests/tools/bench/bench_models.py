"""A model of two layers, for the tests of the benchmark."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl.models import build, tokenizing
from rlhfctl.recipe.schema import Init


def small_model(**changes: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    init = Init(**{**sizes, "tokens": [f"w{index} " for index in range(198)], **changes})
    tokenizer = tokenizing.train_tokenizer(init, [])
    return build.build_model(init, tokenizer, seed=0, dtype=torch.float32), tokenizer
