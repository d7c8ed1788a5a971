"""Pretrained folders of every model family at the smallest size, with tokenizers of every kind, made without a network.

What people bring differs in more than the architecture: embeddings tied or not; a pad token or none; texts that begin
with a token of their own or not; a chat template of the tokenizer's, one that the recipe must state, or none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhfctl.world import reviews

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
_VOCABULARY = 300
_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
_GATED = _WIDTH | {"intermediate_size": 48, "num_key_value_heads": 1}
_WINDOW = 6  # shorter than any prompt with its response


@dataclass(frozen=True)
class Family:
    """A model type, its config, and the tokenizer that comes with it."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    pad: bool = True
    bos: bool = False
    template: str | None = None  # "own": the tokenizer's; "recipe": stated there; None: plain text

    @property
    def conversational(self) -> bool:
        return self.template is not None


FAMILIES = {
    "llama": Family("llama", _GATED, pad=False, bos=True, template="recipe"),
    "mistral-window": Family("mistral", _GATED | {"sliding_window": _WINDOW}, bos=True),
    "qwen2": Family("qwen2", _GATED, tied=True, template="own"),
    "qwen3": Family("qwen3", _GATED | {"head_dim": 16}, pad=False, template="recipe"),
    "gemma2": Family(
        "gemma2",
        _GATED
        | {"head_dim": 16, "sliding_window": _WINDOW, "query_pre_attn_scalar": 16}
        | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
        tied=True,
        bos=True,
    ),
    "gemma3": Family(
        "gemma3_text",
        _GATED
        | {"head_dim": 16, "sliding_window": _WINDOW, "query_pre_attn_scalar": 16}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        tied=True,
        bos=True,
        template="own",
    ),
    "gpt-neox": Family("gpt_neox", _WIDTH | {"intermediate_size": 64}, pad=False),
    "gpt2": Family(
        "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "n_inner": 64}, tied=True, pad=False
    ),
    "opt": Family("opt", _WIDTH | {"ffn_dim": 64, "word_embed_proj_dim": 16}, tied=True, bos=True),
    "phi": Family("phi", _WIDTH | {"intermediate_size": 64, "num_key_value_heads": 2}, pad=False, template="own"),
}


@cache
def _backend() -> str:
    """A byte-level BPE of the built-in task's text, as JSON."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    rows = reviews.demonstrations(60, 0)
    backend.train_from_iterator([row["prompt"] + row["completion"] for row in rows], trainer)
    return str(backend.to_str())


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(_backend())
    if family.bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    named = {"eos_token": "</s>"} | ({"pad_token": "<pad>"} if family.pad else {})
    named |= {"bos_token": "<s>"} if family.bos else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, **named)
    if family.template == "own":
        tokenizer.chat_template = ("{{ bos_token }}" if family.bos else "") + CHAT
    return tokenizer


def write(family: Family, folder: Path) -> Path:
    """The folder as `save_pretrained` leaves it."""
    tokenizer = tokenizer_of(family)
    config = AutoConfig.for_model(
        family.kind,
        **family.config,
        vocab_size=len(tokenizer),
        tie_word_embeddings=family.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # as far from uniform as a trained model, so that what differs shows
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 15
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
