"""A thousand random pairs of texts, and tiny models with weights from a formula: inputs of the metrics' fixtures.

They depend on no generator whose numbers may change with a version: texts on `random.Random.random`, weights on a sine.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

COUNT, CONTEXT = 1000, 512
WORDS = [
    "the",
    "a",
    "of",
    "cat",
    "cats",
    "sat",
    "sitting",
    "mats",
    "mat",
    "on",
    "dog",
    "running",
    "runs",
    "ran",
    "quickly",
    "quick",
    "and,",
    "then.",
    "3.5",
    "1,000",
    "don't",
    "isn't",
    "Ünder",
    "naïve",
    "U.S.",
    "e-mail",
    "house",
    "houses",
    "living",
    "lives!",
    "(maybe)",
    '"so"',
    "running;",
    "it's",
    "50%",
    "—",
    "北京",
    "is",
    "were",
    "been",
    "hello",
    "Hello",
    "HELLO",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;!?'%()-\""


def pairs() -> list[tuple[str, str]]:
    """(text, reference): the reference is drawn, the text is the reference with words left out, changed and moved."""
    draw = random.Random(7).random

    def word() -> str:
        return WORDS[int(draw() * len(WORDS))]

    found = []
    for _ in range(COUNT):
        reference = [word() for _ in range(1 + int(draw() * 25))]
        noise = draw() ** 2
        text = [word() if draw() < noise else one for one in reference if draw() > noise / 3]
        if draw() < 0.3 and len(text) > 2:
            cut = 1 + int(draw() * (len(text) - 1))
            text = [*text[cut:], *text[:cut]]
        found.append((" ".join(text), " ".join(reference)))
    return found


def _filled(model: nn.Module) -> None:
    """Set every weight by a formula."""
    with torch.no_grad():
        for number, weights in enumerate(model.parameters()):
            steps = torch.arange(weights.numel(), dtype=torch.float64)
            values = 0.3 * torch.sin(steps * (0.7 + 0.01 * number) + number)
            weights.copy_((values + (weights.dim() == 1)).reshape(weights.shape).to(weights.dtype))


def _tokenizer(special: list[str], template: str | None) -> PreTrainedTokenizerFast:
    """A token for each letter; other characters are unknown."""
    vocabulary = {token: index for index, token in enumerate([*special, " ", *LETTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if template is not None:
        ids = [(token, vocabulary[token]) for token in special[2:4]]
        inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=special[0],
        unk_token=special[1],
        model_max_length=CONTEXT,
        **_roles(special, template),
    )


def _roles(special: list[str], template: str | None) -> dict[str, str]:
    return {"cls_token": special[2], "sep_token": special[3]} if template else {"eos_token": special[2]}


def tiny_encoder(folder: Path) -> Path:
    """Save a BERT of two layers whose tokens are letters."""
    tokenizer = _tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip
    model = BertModel(config)
    _filled(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_language_model(folder: Path) -> Path:
    """Save a Llama of two layers whose tokens are letters."""
    tokenizer = _tokenizer(["<pad>", "<unk>", "<eos>"], None)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=CONTEXT, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _filled(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
