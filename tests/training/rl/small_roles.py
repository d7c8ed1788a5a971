"""Roles on one shared model of two layers, for the tests of roles, adapters, heads and language models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from torch import nn

from rlhfctl.models import build, heads, merging, scoring, tokenizing
from rlhfctl.models.adapters import (
    POLICY,
    add_adapter,
    add_lora,
    save_adapter,
)
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Init, Lora
from rlhfctl.training.rl.roles import CRITIC, Critic, Roles

COMMON_ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "qwen2", "mistral")


ROLE_LORA = Lora(r=4, lora_alpha=8)


LENGTH = 6


PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 2], [3, 3], [9, 8, 7], [4], [2, 9], [5, 5, 5, 5]]


ROWS = [[2, 3, 4, 5], [6, 7], [8, 9, 2, 3, 4, 5, 6], [7, 7, 7]]


def base(architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any]:
    """A tokenizer and a language model far from uniform: gradients and scores are no rounding matter."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    init = Init(architecture=architecture, tokens=list("abcdefgh"), **shape | changes)
    tokenizer = tokenizing.train_tokenizer(init, [])
    model = build.build_model(init, tokenizer, seed=1, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter *= 8 if "wte" not in name else 4
    return tokenizer, model.eval()


def stir_adapters(module: nn.Module, by: float = 0.1, only: str = ".lora_", seed: int = 5) -> None:
    """Move the weights whose names hold `only`: adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if only in name:
                parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def shared_roles(dtype: torch.dtype = torch.float32) -> tuple[Any, Roles, Any]:
    """(tokenizer, roles with policy and critic as adapters of one model, an untouched copy of the base)."""
    tokenizer, model = base(dtype=dtype)
    untouched = build.copy_frozen(model)
    peft_model = add_lora(model, ROLE_LORA, TaskType.CAUSAL_LM, seed=0)
    add_adapter(peft_model, CRITIC, ROLE_LORA, seed=1)
    stir_adapters(peft_model)
    pad = tokenizer.pad_token_id
    head = heads.new_head(peft_model)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, head.weight.numel())[None])
    critic = Critic(AdapterScorer(LanguageModel(peft_model, pad, CRITIC), head))
    everyone = Roles(LanguageModel(peft_model, pad, POLICY), LanguageModel(peft_model, pad, None), critic)
    return tokenizer, everyone, untouched


def alone_merged(untouched: Any, peft_model: PeftModel, adapter: str) -> Any:
    """The plain model with B A x alpha / r added to each weight, by hand."""
    twin = copy.deepcopy(untouched)
    state = peft_model.state_dict()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.{adapter}.weight" in state:
                a, b = (state[f"{stem}.lora_{matrix}.{adapter}.weight"] for matrix in "AB")
                parameter += b @ a * ROLE_LORA.lora_alpha / ROLE_LORA.r
    return twin


def save_reward(untouched: Any, tokenizer: Any, folder: Path) -> list[float]:
    """Train-like SEQ_CLS adapter with head, saved by peft; the scores it gives to ROWS."""
    scorer = heads.scorer_on(untouched, seed=3)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    scorer = add_lora(scorer, ROLE_LORA, TaskType.SEQ_CLS, seed=4)
    stir_adapters(scorer, seed=8)
    stir_adapters(scorer, by=0.5, only="score.modules_to_save", seed=9)
    save_adapter(scorer, folder, base="base", head=True)
    return scoring.score_rows(merging.merged(scorer), ROWS, tokenizer.pad_token_id)
