"""Pretrained folders of every model family at the smallest size, with tokenizers of every kind, made without a network.

What people bring differs in more than the architecture: embeddings tied or not; a pad token or none; texts that begin
with a token of their own or not; a chat template of the tokenizer's, one that the recipe must state, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
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
_STRETCH = 15  # times the weights of a new model
_WINDOW = 6  # shorter than any prompt with its response


@dataclass(frozen=True)
class Family:
    """A model type, its config, the tokenizer that comes with it, and how it is trained."""

    kind: str
    config: dict[str, Any]
    tied: bool
    pad: bool  # whether the tokenizer has a pad token
    bos: bool  # whether every text begins with a token of its own
    template: str | None  # "own": the tokenizer's; "recipe": stated there; None: plain text
    critic: str
    whole: tuple[str, ...] = ()  # the stages that train all weights
    rows: int = _VOCABULARY  # of the embeddings

    def axes(self) -> dict[str, Any]:
        """What it is one case of; "whole" is about PPO."""
        names = ("tied", "pad", "bos", "template", "critic")
        return {name: getattr(self, name) for name in names} | {"whole": "ppo" in self.whole}


_YES, _NO = True, False
_HEADS = {"head_dim": 16}
_GEMMA = _GATED | _HEADS | {"sliding_window": _WINDOW, "query_pre_attn_scalar": 16}
_CAPS = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 4.0}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "n_inner": 64}
_OPT = _WIDTH | {"ffn_dim": 64, "word_embed_proj_dim": 16}
_PHI = _WIDTH | {"intermediate_size": 64, "num_key_value_heads": 2}
_ALL = ("sft", "reward", "ppo")
FAMILIES = {  #                                              tied  pad   bos   template   critic
    "llama": Family("llama", _GATED, _NO, _NO, _YES, "recipe", "adapter"),
    "mistral": Family("mistral", _GATED | {"sliding_window": _WINDOW}, _NO, _YES, _YES, "recipe", "head", _ALL),
    "qwen2": Family("qwen2", _GATED, _YES, _NO, _NO, "own", "adapter", rows=320),
    "qwen3": Family("qwen3", _GATED | _HEADS, _YES, _NO, _NO, None, "adapter"),
    "gemma2": Family("gemma2", _GEMMA | _CAPS, _YES, _YES, _YES, None, "model", ("ppo",)),
    "gemma3": Family("gemma3_text", _GEMMA | _LAYERS, _YES, _YES, _YES, "own", "adapter"),
    "gpt_neox": Family("gpt_neox", _WIDTH | {"intermediate_size": 64}, _NO, _YES, _NO, "own", "model", ("ppo",), 320),
    "gpt2": Family("gpt2", _GPT2, _YES, _NO, _NO, "own", "head", _ALL),
    "opt": Family("opt", _OPT, _YES, _NO, _NO, "recipe", "model"),
    "phi": Family("phi", _PHI, _NO, _NO, _NO, None, "head"),
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
        vocab_size=family.rows,
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
                parameter *= _STRETCH
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
