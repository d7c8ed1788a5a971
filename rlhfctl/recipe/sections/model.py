"""Define the `model` section: pretrained weights, or new ones of a given size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from rlhfctl.recipe.sections.base import Rule, Section, without

BYTE_LEVEL_VOCABULARY = 260  # 256 bytes, and the pad, begin, end and unknown tokens
PRETRAINED_KEYS = ("path", "revision", "quantization", "trust_remote_code")
ROTARY = ("llama", "mistral", "qwen2")  # gpt_neox turns a part of each head, gpt2 none


class Init(Section):
    """A new model with random weights."""

    architecture: Literal["llama", "mistral", "qwen2", "gpt_neox", "gpt2"] = Field(
        "llama", description="Model family whose configuration and code are used."
    )
    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    num_hidden_layers: int = Field(gt=0, description="Number of transformer blocks.")
    num_attention_heads: int = Field(gt=0, description="Attention heads in each block; must divide hidden_size.")
    intermediate_size: int | None = Field(
        None, gt=0, description="Width of the feed-forward layers (null: the architecture's usual multiple)."
    )
    vocab_size: int = Field(
        1024, gt=0, description="Vocabulary size of the byte-level BPE tokenizer that is trained on the demonstrations."
    )
    max_position_embeddings: int = Field(
        256, gt=0, description="Maximum sequence length in tokens, prompt and response together."
    )
    tie_word_embeddings: bool = Field(False, description="Whether the input and output embeddings share weights.")
    tokens: list[str] | None = Field(
        None, min_length=1, description="A fixed vocabulary of whole tokens, instead of BPE trained on demonstrations."
    )

    @property
    def repeated_tokens(self) -> list[str]:
        """List the tokens that occur more than once, sorted."""
        return sorted(token for token, count in Counter(self.tokens or []).items() if count > 1)

    RULES: ClassVar[tuple[Rule[Init], ...]] = (
        Rule(
            "hidden_size",
            "{hidden_size} cannot be shared among {num_attention_heads} attention heads",
            "use a multiple of {num_attention_heads}",
            lambda init: init.hidden_size % init.num_attention_heads != 0,
            about=("num_attention_heads",),
        ),
        Rule(
            "hidden_size",
            "{hidden_size} in {num_attention_heads} attention heads is an odd number per head; {architecture} turns "
            "pairs of them (rotary positions)",
            "use a multiple of twice {num_attention_heads}",
            lambda init: init.architecture in ROTARY and init.hidden_size / init.num_attention_heads % 2 == 1,
            about=("num_attention_heads", "architecture"),
        ),
        Rule(
            "vocab_size",
            f"byte-level BPE needs at least {BYTE_LEVEL_VOCABULARY}, got {{vocab_size}}",
            f"use {BYTE_LEVEL_VOCABULARY} or more, or list whole tokens under {{at}}.tokens",
            lambda init: init.tokens is None and init.vocab_size < BYTE_LEVEL_VOCABULARY,
            about=("tokens",),
        ),
        Rule(
            "vocab_size",
            "the list of tokens fixes it",
            "remove it",
            lambda init: init.tokens is not None and init.is_set("vocab_size"),
            about=("tokens",),
        ),
        Rule(
            "tokens",
            "a token is empty",
            "remove it",
            lambda init: "" in (init.tokens or ()),
        ),
        Rule(
            "tokens",
            "listed more than once: {repeated_tokens}",
            "list each token once",
            lambda init: bool(init.repeated_tokens),
        ),
    )

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), () if self.tokens is None else ("vocab_size",))


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _beside_init(key: str) -> Callable[[Model], bool]:
    return lambda model: model.init is not None and bool(getattr(model, key))


class Model(Section):
    """The source of the weights: new ones (`init`) or pretrained ones (`path`)."""

    init: Init | None = Field(
        None, description="Shape of a new model with random weights, in place of a pretrained one."
    )
    path: str | None = Field(None, min_length=1, description="Pretrained model: a local folder or a Hub id.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model on the Hub.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Data type of the weights.")
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="Attention implementation wherever a model is loaded (null: the architecture's default)."
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="Load the frozen base model in 8 or 4 bits (bitsandbytes) while LoRA adapters are trained."
    )
    chat_template: str | None = Field(
        None, description="Chat template: a .jinja file, the template text itself, or a name: chatml, "
        "human-assistant, zephyr (null: the tokenizer's own)."
    )  # fmt: skip
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        {}, description="Variables passed to the chat template in every stage and export: {enable_thinking: false}."
    )
    template_tokens: Literal["add", "text"] = Field(
        "add", description="Treatment of chat template markers that are not tokens of the base model: add (the sft "
        "stage adds them to the tokenizer and trains their embeddings) or text (they stay ordinary text)."
    )  # fmt: skip
    template_date: str = Field(
        "2026-01-01", description="Today's date (YYYY-MM-DD) for chat templates that show one, in every stage. An "
        "exported model shows the real date."
    )  # fmt: skip
    trust_remote_code: bool = Field(False, description="Whether Python code that comes with the model may run.")

    @field_validator("template_date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> Any:
        return value.isoformat() if type(value) is date else value  # YAML reads a day without quotes as a date

    RULES: ClassVar[tuple[Rule[Model], ...]] = (
        Rule(
            "template_date",
            "{template_date!r} is no day",
            "write it as 2026-01-01",
            lambda model: not _is_date(model.template_date),
        ),
        Rule(
            "",
            "says nothing about the weights",
            "give {at}.path (pretrained) or {at}.init (new weights)",
            lambda model: model.init is None and model.path is None,
            about=("init", "path"),
        ),
        Rule(
            "attn_implementation",
            "flash_attention_2 computes in 16 bits, but the weights are float32",
            "set dtype: bfloat16, or use sdpa",
            lambda model: model.attn_implementation == "flash_attention_2" and model.dtype == "float32",
            about=("dtype",),
        ),
        *(
            Rule(
                key,
                "is for pretrained weights, but {at}.init makes new ones",
                "remove {key} or init",
                _beside_init(key),
            )
            for key in PRETRAINED_KEYS
        ),
    )
