"""Folders of bases and adapters, for the tests of merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhfctl.models import build, scoring, tokenizing
from rlhfctl.recipe.schema import Init

FLOAT = torch.float32


IDS = torch.tensor([[5, 9, 7, 30, 1]])


def write_base(folder: Path, *, tied: bool = False, seed: int = 0) -> Path:
    init = Init(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=270, max_position_embeddings=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    tokenizer = tokenizing.train_tokenizer(init, ["ask me something"])
    build.save_model(build.build_model(init, tokenizer, seed=seed, dtype=FLOAT), tokenizer, folder)
    return folder


def write_adapter(base: Path, folder: Path, *, tokens: tuple[str, ...] = (), **config: Any) -> torch.Tensor:
    """A stirred adapter as peft saves it, with its tokenizer where tokens were added; the logits that it gives."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        tokenizer.add_tokens(list(tokens))
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    settings = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    torch.manual_seed(7)
    adapted = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
        logits = adapted.eval()(input_ids=IDS).logits
    adapted.save_pretrained(folder, save_embedding_layers=False if "trainable_token_indices" in config else "auto")
    if tokens:
        tokenizer.save_pretrained(folder)
    return logits


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits_of(model: Any) -> torch.Tensor:
    with scoring.evaluating(model):
        out: torch.Tensor = model(input_ids=IDS).logits
    return out
