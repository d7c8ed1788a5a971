"""Helpers of tests of encoding: tokenizers trained here, with chat templates."""

from __future__ import annotations

from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhfctl.models.tokenizing import EOS_TOKEN
from rlhfctl.recipe.schema import Init
from rlhfctl.world import reviews

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Turns without an end token: only the last turn of a row can be ended by ours.
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


WORLD = reviews.demonstrations(300, 0)


INIT = Init(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=600)


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def ask(content: str) -> dict[str, Any]:
    return message("user", content)


def answer(content: str) -> dict[str, Any]:
    return message("assistant", content)


def build(
    trained: str,
    *,
    eos: str = EOS_TOKEN,
    bos: str | None = None,
    around: str | None = None,
    more: list[str] | None = None,
) -> PreTrainedTokenizerBase:
    """The world's merges with other special tokens; `around` is a post-processor's template, as "<s> $A </s>"."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(trained)
    backend.add_special_tokens([token for token in (bos, eos, *(more or [])) if token is not None])
    if around is not None:
        special = [(token, backend.token_to_id(token)) for token in around.split() if token != "$A"]
        backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, bos_token=bos, pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text alone: what the rules are checked against."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
