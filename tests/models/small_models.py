"""Models of two layers and seventeen words, for the tests of models."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from rlhfctl.models import build, scoring, tokenizing
from rlhfctl.recipe.schema import Init, Lora

FLOAT = torch.float32


LORA = Lora(r=2, lora_alpha=8)


ARCHITECTURES = typing.get_args(Init.model_fields["architecture"].annotation)


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


WORDS = ["a", "b", "ab", " ", "+", ".", "(", "é", "x|y", "\\d", "[", "^$", "*", "-", "'", "<", "\n"]


def words(**changes: Any) -> tuple[Any, Any]:
    init = Init(**SMALL | {"tokens": WORDS} | changes)
    tokenizer = tokenizing.train_tokenizer(init, [])
    return tokenizer, build.build_model(init, tokenizer, seed=1, dtype=FLOAT)


def stir(model: Any, seed: int = 0) -> Any:
    """Every trainable weight moved at random, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with scoring.evaluating(model):
        out: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return out


def masked_model(vocabulary: Sequence[str], positions: int) -> tuple[Any, Any]:
    """A masked model of whole words with random weights, and its tokenizer."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary]
    inner = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    inner.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    model.config.architectures = ["BertForMaskedLM"]
    return model, tokenizer
