"""What a recipe may say: every key, its type, its default, and which combinations cannot work.

Names are those of Hugging Face and TRL. Each key's description stands here once and feeds the help, the JSON Schema
and the docs. Rules about several keys are the `conflicts` methods, beside the keys that they are about; `Recipe`
runs them all and raises them together. A validated `Recipe` is resolved: the inherited `lora` stands in each stage.

Left out: reading files, paths and messages with line numbers (load.py), and the fields of TRL's SFTConfig and
RewardConfig under `trainer:` (checked by the stages, which have TRL; only the keys that rlhfctl owns are refused here).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

Key = tuple[str | int, ...]  # ("compare", "judges", 1)

BUILTIN_SOURCES = ("builtin:reviews",)
BYTE_LEVEL_VOCABULARY = 260  # 256 bytes, and the pad, begin, end and unknown tokens
SMALLEST_WHITENED_MINIBATCH = 8  # TRL's PPOTrainer asserts it
DEFAULT_RESPONSE_LENGTH = 53
LARGEST_SEED = 2**32 - 1  # NumPy's limit

LONGEST_ID = 200  # the Hub allows 96

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
NAMED_JUDGES = ("gold", "reward_model", "reward_function")

# Keys of TRL's trainers that rlhfctl sets itself, and what to use in their place.
OWNED_TRAINER_KEYS = {
    "output_dir": "choose the folder with `--run-dir`",
    "overwrite_output_dir": "choose another folder with `--run-dir`: nothing is overwritten silently",
    "logging_dir": "choose the folder with `--run-dir`",
    "seed": "use the top-level `seed`",
    "data_seed": "use the top-level `seed`",
    "resume_from_checkpoint": "give the same command again: it resumes by itself",
    "save_strategy": "use `checkpoint_steps` of the stage",
    "save_steps": "use `checkpoint_steps` of the stage",
    "save_total_limit": "use `checkpoint_steps` of the stage",
    "save_only_model": "remove it: from weights alone a stage that was stopped cannot resume",
    "load_best_model_at_end": "remove it: a stage hands over its last weights",
    "report_to": "use the top-level `report_to`",
    "disable_tqdm": "remove it: the dashboard shows the progress",
    "push_to_hub": "use `rlhfctl export`, then the Hub's own upload command",
    "model_init_kwargs": "use the `model` section",
    "trust_remote_code": "use `model.trust_remote_code`",
    "chat_template_path": "use `model.chat_template`",
    "dataset_kwargs": "use the `data` section",
}


# Keys that TRL's PPOConfig accepts and `ppo` does not: what is wrong with each, and the way out.
REFUSED_PPO_KEYS = {
    "num_train_epochs": ("PPO's length is counted in episodes", "set ppo.total_episodes"),
    "max_steps": ("PPO's length is counted in episodes", "set ppo.total_episodes"),
    "batch_size": ("TRL derives it", "set ppo.per_device_train_batch_size"),
    "mini_batch_size": ("TRL derives it", "set ppo.num_mini_batches"),
    "sft_model_path": ("the policy is what the sft stage leaves, or else the model section", "set model.path"),
    "reward_model_path": ("the reward model has a section of its own", "set reward.model"),
}


def owned_trainer_key(key: str) -> str | None:
    """What to use in place of a trainer key that rlhfctl owns; None for any other key."""
    return OWNED_TRAINER_KEYS["push_to_hub"] if key.startswith("hub_") else OWNED_TRAINER_KEYS.get(key)


@dataclass(frozen=True)
class Conflict:
    """Keys that conflict: the one to show, why, a way out, and the other keys that it depends on."""

    key: str
    what: str
    fix: str
    about: tuple[str, ...] = ()


class Section(BaseModel):
    """What all sections share: unknown keys fail, "3" is not a number, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Init(Section):
    """New weights, drawn at random."""

    architecture: Literal["llama", "mistral", "qwen2", "gpt_neox", "gpt2"] = Field(
        "llama", description="Model family whose configuration and code are used."
    )
    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    num_hidden_layers: int = Field(gt=0, description="Number of transformer blocks.")
    num_attention_heads: int = Field(gt=0, description="Attention heads in each block; must divide hidden_size.")
    intermediate_size: int | None = Field(
        None, gt=0, description="Width of the feed-forward layer (null: the architecture's usual multiple)."
    )
    vocab_size: int = Field(1024, gt=0, description="Size of the byte-level BPE vocabulary.")
    max_position_embeddings: int = Field(256, gt=0, description="Longest sequence, prompt and response together.")
    tie_word_embeddings: bool = Field(False, description="Whether the input and output embeddings share weights.")
    tokens: list[str] | None = Field(
        None, min_length=1, description="A fixed vocabulary of whole tokens, in place of BPE trained on demonstrations."
    )

    def conflicts(self) -> Iterator[Conflict]:
        if self.hidden_size % self.num_attention_heads:
            yield Conflict(
                "model.init.hidden_size",
                f"{self.hidden_size} cannot be shared among {self.num_attention_heads} attention heads",
                f"use a multiple of {self.num_attention_heads}",
                about=("model.init.num_attention_heads",),
            )
        if self.tokens is None:
            if self.vocab_size < BYTE_LEVEL_VOCABULARY:
                yield Conflict(
                    "model.init.vocab_size",
                    f"byte-level BPE needs at least {BYTE_LEVEL_VOCABULARY}, got {self.vocab_size}",
                    f"use {BYTE_LEVEL_VOCABULARY} or more, or list whole tokens under model.init.tokens",
                    about=("model.init.tokens",),
                )
            return
        if "vocab_size" in self.model_fields_set:
            yield Conflict(
                "model.init.vocab_size",
                "the list of tokens fixes it",
                "remove it",
                about=("model.init.tokens",),
            )
        if "" in self.tokens:
            yield Conflict("model.init.tokens", "a token is empty", "remove it")
        repeated = sorted({token for token in self.tokens if self.tokens.count(token) > 1})
        if repeated:
            yield Conflict("model.init.tokens", f"listed more than once: {', '.join(repeated)}", "list each token once")

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), () if self.tokens is None else ("vocab_size",))


class Model(Section):
    """Where the weights come from: new ones (`init`) or pretrained ones (`path`)."""

    init: Init | None = Field(None, description="New weights of the given shape, in place of pretrained ones.")
    path: str | None = Field(None, min_length=1, description="A folder with a pretrained model, or its id on the Hub.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model on the Hub.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Number format of the weights.")
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="Which code computes attention, wherever a model is loaded (null: the architecture's own)."
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="Hold the frozen base in so many bits while adapters are trained on it (bitsandbytes)."
    )
    chat_template: str | None = Field(
        None, description="A .jinja file with the chat template, the template itself, or a name: chatml, "
        "human-assistant, zephyr (null: the tokenizer's own)."
    )  # fmt: skip
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        {}, description="Variables of the chat template, fixed for every stage and export: {enable_thinking: false}."
    )
    template_tokens: Literal["add", "text"] = Field(
        "add", description="Marks of the chat template that are no tokens of the base: sft adds them to the tokenizer "
        "and trains their rows of the embeddings, or they stay text that is written letter by letter."
    )  # fmt: skip
    template_date: str = Field(
        "2026-01-01", description="The day (YYYY-MM-DD) that a chat template which reads the clock writes, in every "
        "stage. An export reads the clock again."
    )  # fmt: skip
    trust_remote_code: bool = Field(False, description="Whether code that comes with the model may be run.")

    @field_validator("template_date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> Any:
        return value.isoformat() if type(value) is date else value  # what YAML makes of a day without quotes

    def conflicts(self) -> Iterator[Conflict]:
        try:
            date.fromisoformat(self.template_date)
        except ValueError:
            yield Conflict("model.template_date", f"{self.template_date!r} is no day", "write it as 2026-01-01")
        if self.init is None and self.path is None:
            yield Conflict(
                "model",
                "says nothing about the weights",
                "give model.path (pretrained) or model.init (new weights)",
                about=("model.init", "model.path"),
            )
        if self.attn_implementation == "flash_attention_2" and self.dtype == "float32":
            yield Conflict(
                "model.attn_implementation", "flash_attention_2 computes in 16 bits, but the weights are float32",
                "set dtype: bfloat16, or use sdpa",
                about=("model.dtype",),
            )  # fmt: skip
        if self.init is None:
            return
        for key in ("path", "revision", "quantization", "trust_remote_code"):
            if getattr(self, key):
                yield Conflict(
                    f"model.{key}",
                    "is for pretrained weights, but model.init makes new ones",
                    f"remove {key} or init",
                )
        yield from self.init.conflicts()


class Lora(Section):
    """Low-rank adapters: what is trained in place of all weights."""

    r: int = Field(16, gt=0, description="Rank of the adapters.")
    lora_alpha: int = Field(32, gt=0, description="Scale of the adapters; they are multiplied by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of each adapter.")
    target_modules: str | list[str] = Field(
        "all-linear", min_length=1, description="Which modules get adapters: all-linear, a regular expression or names."
    )


OWN_DATA_KEYS = (
    "columns", "label", "subset", "split", "revision", "turns", "as_conversations", "response_prefix", "bad_rows",
    "deduplicate", "max_chars",
)  # fmt: skip
BUILTIN_DATA_KEYS = ("rows", "label_noise")
# In a list of sources: keys beside it that hold for each source which does not state them, and keys of one source.
SHARED_DATA_KEYS = (
    "columns", "label", "turns", "as_conversations", "response_prefix", "bad_rows", "deduplicate", "max_chars",
)  # fmt: skip
ONE_SOURCE_KEYS = ("source", "subset", "split", "revision", "limit", "rows", "label_noise")
DEFAULT_TEST_PROMPTS = 100
DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")


def looks_like_id(source: str) -> bool:
    """Whether a data source that is no path here may be an id on the Hub: `name` or `owner/name`, no file's ending."""
    is_file = source.removesuffix(".gz").endswith(DATA_SUFFIXES)
    return not is_file and len(source) <= LONGEST_ID and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None


class Turns(Section):
    """The words with which the turns of a transcript begin."""

    user: str = Field("Human:", min_length=1, description="Begins a turn of the user.")
    assistant: str = Field("Assistant:", min_length=1, description="Begins a turn of the assistant.")
    system: str | None = Field(None, min_length=1, description="Begins what the system says.")


_SOURCE = (
    "A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt; .gz too), a folder of such files or one saved by "
    "datasets, an id on the Hub, or builtin:reviews for the built-in task."
)
LabelValue = str | int | float | bool


class Source(Section):
    """Where rows come from, what their columns are called, and which of them are used."""

    source: str = Field(min_length=1, description=_SOURCE)
    subset: str | None = Field(None, min_length=1, description="Which configuration of a data set on the Hub.")
    split: str | None = Field(
        None,
        min_length=1,
        description="Which split of a data set on the Hub or in a folder (null: train, or all).",
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of the data set on the Hub.")
    rows: int | None = Field(None, gt=0, description="How many rows the built-in task generates.")
    columns: dict[str, str | list[str]] = Field(
        {},
        description="Names of columns in the file, by our name: {prompt: question}; a.b is b within a; several columns "
        "make a list of responses, {responses: [a, b], label: winner}, or one text, {prompt: [instruction, input]}.",
    )
    turns: Turns | None = Field(
        None,
        description="Make conversations of texts that are transcripts, whose turns begin with these words.",
    )
    as_conversations: bool = Field(
        False, description="Make conversations of texts: the prompt is a user's turn, the response an assistant's."
    )
    bad_rows: Literal["stop", "drop"] = Field("stop", description="Whether rows that cannot be used stop the run.")
    deduplicate: bool = Field(False, description="Whether rows equal to an earlier one are dropped.")
    max_chars: int | None = Field(None, gt=0, description="Drop rows with more characters than this (null: none).")
    limit: int | None = Field(None, gt=0, description="Use only this many rows, from the first (null: all).")

    @property
    def parts(self) -> list[Source]:
        """The sources to read: those of a list, or this one."""
        listed: list[Source] | None = getattr(self, "sources", None)
        return [self] if listed is None else list(listed)

    @property
    def builtin(self) -> bool:
        return all(part.source.startswith("builtin:") for part in self.parts)

    @property
    def known_rows(self) -> int | None:
        """How many rows there are at most, where that can be told without reading a file."""
        bounds = [bound for bound in (self.rows, self.limit) if bound is not None]
        return min(bounds) if bounds else None

    def conflicts(self, at: str) -> Iterator[Conflict]:
        source = f"{at}.source"
        if self.parts != [self]:
            for key in ONE_SOURCE_KEYS:
                if key in self.model_fields_set and getattr(self, key):
                    yield Conflict(
                        f"{at}.{key}", "is of one source, but sources lists them", "write it in the list",
                        about=(f"{at}.sources",),
                    )  # fmt: skip
            for index, part in enumerate(self.parts):
                yield from part.conflicts(f"{at}.sources.{index}")
            return
        if not self.source:
            yield Conflict(
                source, "missing", "add it: a file, a folder, an id on the Hub; or sources: a list of them",
                about=(f"{at}.sources",),
            )  # fmt: skip
            return
        if self.turns is not None and self.as_conversations:
            yield Conflict(
                f"{at}.as_conversations", "makes a turn of each text, but turns finds several in it", "remove one",
                about=(f"{at}.turns",),
            )  # fmt: skip
        if not self.builtin:
            if "label_noise" in self.model_fields_set:
                yield Conflict(
                    f"{at}.label_noise", "is for the built-in task, but the source is a file", "remove it",
                    about=(source,),
                )  # fmt: skip
            if self.rows is not None:
                yield Conflict(
                    f"{at}.rows", "is how many rows the built-in task generates, but the source is a file", "use limit",
                    about=(source,),
                )  # fmt: skip
            return
        if self.source not in BUILTIN_SOURCES:
            yield Conflict(source, f"there is no {self.source!r}", f"use {' or '.join(BUILTIN_SOURCES)}, or a file")
        if self.rows is None:
            yield Conflict(f"{at}.rows", f"{self.source} needs the number of rows to generate", "add it: rows: 2000")
        if self.columns:
            yield Conflict(f"{at}.columns", f"names columns of a file, but the source is {self.source}", "remove it")
        for key in OWN_DATA_KEYS:
            if key != "columns" and key in self.model_fields_set and getattr(self, key) not in (None, False, ""):
                yield Conflict(f"{at}.{key}", f"is for one's own data, but the source is {self.source}", "remove it")

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        """A list of sources as a section, and what stands beside one in each of them."""
        value = {"sources": value} if isinstance(value, list) and "sources" in cls.model_fields else value
        if not isinstance(value, dict) or not isinstance(value.get("sources"), list):
            return value
        return value | {"sources": [_with_shared(part, value) for part in value["sources"]]}

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused: tuple[str, ...] = ONE_SOURCE_KEYS
        if self.parts == [self]:
            unused = OWN_DATA_KEYS if self.builtin else BUILTIN_DATA_KEYS
        absent = tuple(key for key in ("sources", "eval_source", "test_source") if getattr(self, key, None) is None)
        return _without(handler(self), (*unused, *absent))


def _with_shared(part: Any, beside: dict[str, Any]) -> Any:
    """A source of a list, or one of its own for a part of the prompts, with the keys that it does not state itself."""
    if not isinstance(part, dict) or str(part.get("source")).startswith("builtin:"):
        return part
    return {key: beside[key] for key in SHARED_DATA_KEYS if key in beside} | part


class Weighted(Section):
    """How much a source of a list counts."""

    weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="How often each row of this source is used: 2 is twice, 0.5 is one half of them, drawn by "
        "data_seed.",
    )


class Answered(Source):
    """What sources with responses share."""

    response_prefix: str = Field(
        "", description="Put before each text response where neither it nor its prompt has white space there: ' '."
    )


class Compared(Answered):
    """What sources with several responses to a prompt share."""

    label_noise: float = Field(0.1, ge=0, le=1, description="Fraction of built-in pairs whose labels are swapped.")
    label: dict[Literal["first", "second", "tie"], LabelValue | list[LabelValue]] | None = Field(
        None,
        description="What the column `label` says where the first, the second or neither of two responses won; a list "
        "where several values say it.",
    )


class DemonstrationsPart(Weighted, Answered):
    """One of several sources of demonstrations."""


class PreferencesPart(Weighted, Compared):
    """One of several sources of preferences."""


class PromptsPart(Weighted, Source):
    """One of several sources of prompts."""


class Demonstrations(Answered):
    """Prompts with good responses, for the sft stage."""

    source: str = Field("", min_length=1, description=_SOURCE)
    sources: list[DemonstrationsPart] | None = Field(
        None, min_length=1, description="Several sources in place of one, each with its weight."
    )


class Preferences(Compared):
    """Pairs of responses, of which people chose one, for the reward stage."""

    source: str = Field("", min_length=1, description=_SOURCE)
    sources: list[PreferencesPart] | None = Field(
        None, min_length=1, description="Several sources in place of one, each with its weight."
    )
    heldout: float = Field(0.15, gt=0, le=0.9, description="Fraction of prompts whose pairs are held out of training.")


class Prompts(Source):
    """Prompts without responses, split into those for training, for evaluation and for the verdict."""

    source: str = Field("", min_length=1, description=_SOURCE)
    sources: list[PromptsPart] | None = Field(
        None, min_length=1, description="Several sources in place of one, each with its weight."
    )
    eval: int | None = Field(
        None,
        ge=0,
        description="How many prompts are kept for evaluation during PPO (null: none, or all of eval_source).",
    )
    test: int | None = Field(
        None, ge=1, description="How many prompts are kept for compare (null: 100, or all of test_source)."
    )
    eval_source: Source | None = Field(
        None, description="Prompts for evaluation from another source; a name alone is read with the keys beside it."
    )
    test_source: Source | None = Field(
        None, description="Prompts for compare from another source; a name alone is read with the keys beside it."
    )

    @property
    def known_train_rows(self) -> int | None:
        if self.known_rows is None:
            return None
        kept = [(self.eval, self.eval_source), (self.test, self.test_source)]
        return self.known_rows - sum(count or 0 for count, apart in kept if apart is None)

    @model_validator(mode="before")
    @classmethod
    def _with_counts(cls, value: Any) -> Any:
        """Sources given by name alone as sections; counts that are not given."""
        if not isinstance(value, dict):
            return {"sources": value} if isinstance(value, list) else value
        value = dict(value)
        for part, count in (("eval", 0), ("test", DEFAULT_TEST_PROMPTS)):
            source = value.get(f"{part}_source")
            if isinstance(source, str):
                value[f"{part}_source"] = _with_shared({"source": source}, value)
            elif source is None and value.get(part) is None:
                value[part] = count
        return value

    def conflicts(self, at: str) -> Iterator[Conflict]:
        yield from super().conflicts(at)
        for name in ("eval_source", "test_source"):
            apart: Source | None = getattr(self, name)
            if apart is not None:
                yield from apart.conflicts(f"{at}.{name}")
        if self.known_train_rows is not None and self.known_train_rows <= 0:
            yield Conflict(
                f"{at}.test",
                f"eval ({self.eval}) and test ({self.test}) leave none of the {self.known_rows} prompts to train on",
                "lower them, or raise the number of rows",
                about=(f"{at}.eval", f"{at}.rows", f"{at}.limit"),
            )


class Data(Section):
    """The three data sets, and how long prompts may be."""

    demonstrations: Demonstrations | None = Field(None, description="Prompts with good responses, for sft.")
    preferences: Preferences | None = Field(None, description="Chosen and rejected responses, for reward.")
    prompts: Prompts | None = Field(None, description="Prompts for ppo and compare.")
    max_prompt_length: int | None = Field(
        None, gt=0, description="Longest prompt in tokens (null: what the context leaves beside the response)."
    )
    overlong_prompts: Literal["drop", "truncate"] = Field(
        "drop", description="What happens to longer prompts (truncate: cut in content)."
    )
    leaks: Literal["warn", "drop"] = Field(
        "warn", description="Whether demonstrations and preferences that answer a test prompt are named, or dropped."
    )

    def conflicts(self) -> Iterator[Conflict]:
        for name in ("demonstrations", "preferences", "prompts"):
            section: Source | None = getattr(self, name)
            if section is not None:
                yield from section.conflicts(f"data.{name}")


class Trained(Section):
    """What the two stages that use one of TRL's trainers share."""

    lora: Lora | None = Field(None, description="Adapters (absent: the recipe's lora; null: train all weights).")
    trainer: dict[str, Any] = Field({}, description="Any field of TRL's config for this stage, by its own name.")
    checkpoint_steps: int | None = Field(
        None, gt=0, description="Optimizer steps between checkpoints (null: about ten a stage)."
    )

    def _trainer_conflicts(self, at: str) -> Iterator[Conflict]:
        for key in self.trainer:
            instead = owned_trainer_key(key)
            if instead is not None:
                yield Conflict(f"{at}.trainer.{key}", "rlhfctl sets this itself", instead)


class Sft(Trained):
    """Supervised fine-tuning on the demonstrations, by TRL's SFTTrainer."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from self._trainer_conflicts("sft")


RewardText = Literal["text", "pair", "response"]  # what a classifier is given to read


class Reward(Trained):
    """What scores a response: a model trained here by TRL's RewardTrainer, one from elsewhere, or a function."""

    model: str | None = Field(None, min_length=1, description="A reward model from elsewhere: a folder or a Hub id.")
    label: str | int | None = Field(
        None, description="With a classifier as model: the label (name or index) whose log-odds are the score."
    )
    reads: RewardText | None = Field(
        None,
        description="What a classifier reads: text (prompt + response), pair, or response (null: by its outputs).",
    )
    function: str | None = Field(None, description="A Python function in place of a model, as module:name.")
    retries: int = Field(
        0, ge=0, description="How often a function that raised is called again, after 1, 2, 4, ... seconds."
    )

    @property
    def kind(self) -> Literal["trained", "model", "function"]:
        return "model" if self.model is not None else "function" if self.function is not None else "trained"

    def conflicts(self) -> Iterator[Conflict]:
        yield from self._trainer_conflicts("reward")
        for key in ("label", "reads"):
            if getattr(self, key) is not None and self.kind != "model":
                yield Conflict(
                    f"reward.{key}", "is for a classifier as reward model, but reward.model names none",
                    f"name it as reward.model, or remove {key}",
                )  # fmt: skip
        if self.kind == "trained":
            if self.retries:
                yield Conflict(
                    "reward.retries", "is for reward functions, but the reward is a model trained here", "remove it"
                )
            return
        if self.model is not None and self.function is not None:
            yield Conflict("reward.function", "a response has one scorer, but reward.model names another", "remove one")
        for key in ("lora", "trainer", "checkpoint_steps"):
            if getattr(self, key):
                yield Conflict(
                    f"reward.{key}", f"is for a reward model trained here, but reward.{self.kind} names a ready one",
                    f"remove {key} or {self.kind}",
                )  # fmt: skip
        if self.function is not None and not FUNCTION.fullmatch(self.function):
            yield Conflict("reward.function", f"{self.function!r} is not a function", "write it as module:name")

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = {
            "trained": ("model", "function", "label", "reads", "retries"),
            "model": ("function", "lora", "trainer", "checkpoint_steps"),
            "function": ("model", "lora", "trainer", "checkpoint_steps", "label", "reads"),
        }
        return _without(handler(self), unused[self.kind])


class PpoEval(Section):
    """How the policy is watched while PPO runs."""

    every: int = Field(10, ge=0, description="Updates between evaluations on the eval prompts (0: none).")


# What only our own engine can do: `engine: trl` refuses these where they are given.
OWN_ENGINE_KEYS = (
    "critic", "critic_from", "critic_trains_trunk", "rewards", "num_generations", "top_k", "top_p", "stop_strings",
    "missing_eos_score", "whiten_advantages", "entropy_coef", "target_kl", "max_grad_norm", "bf16",
    "gradient_checkpointing", "checkpoint_steps", "keep_checkpoints", "trace_every", "trace_episodes",
)  # fmt: skip


class Ppo(Section):
    """Reinforcement learning against the reward, by proximal policy optimization."""

    engine: Literal["rlhfctl", "trl"] = Field("rlhfctl", description="Whose PPO is run: this one, or TRL's PPOTrainer.")
    lora: Lora | None = Field(None, description="Adapters (absent: the recipe's lora; null: train all weights).")
    critic: Literal["adapter", "head", "model"] | None = Field(
        None, description="The critic: an adapter on base*, a head on the policy, a model (null: adapter, else model)."
    )
    critic_from: str | None = Field(
        None, min_length=1, description="A critic to start from: a run's ppo stage, or its critic folder."
    )
    critic_trains_trunk: bool = Field(
        True, description="With critic: head, whether its gradients reach the policy's weights."
    )
    rewards: dict[str, float] | None = Field(
        None, min_length=1, description="A weighted sum of scorers: {reward: 1.0, module:name: 0.5} (null: the reward)."
    )
    total_episodes: int = Field(2560, gt=0, description="How many responses are sampled and learnt from in all.")
    per_device_train_batch_size: int = Field(64, gt=0, description="Responses in memory at once in an update.")
    gradient_accumulation_steps: int = Field(1, gt=0, description="An update's batch is this many times as large.")
    num_mini_batches: int = Field(1, gt=0, description="Into how many optimizer steps an update's batch is split.")
    num_ppo_epochs: int = Field(4, gt=0, description="Passes over each batch.")
    num_generations: int = Field(1, gt=0, description="Responses to each prompt of a batch.")
    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="How the learning rate changes over the run."
    )
    warmup_steps: int = Field(0, ge=0, description="Updates over which the learning rate rises from 0.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Longest gradient; longer ones are cut (null: never).")
    bf16: bool = Field(False, description="Whether forwards run in bfloat16 over float32 weights (autocast).")
    gradient_checkpointing: bool = Field(
        False, description="Whether activations are computed again in the backward pass, to save memory."
    )
    response_length: int = Field(DEFAULT_RESPONSE_LENGTH, gt=0, description="Longest response in tokens.")
    temperature: float = Field(0.7, gt=0, description="Temperature at which responses are sampled.")
    top_k: int = Field(0, ge=0, description="Draw from this many likeliest tokens only (0: from all).")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the likeliest tokens that make up this probability.")
    stop_token: str | None = Field(
        "eos", min_length=1, description="Where a response ends: eos, or a token as text (null: at response_length)."
    )
    stop_strings: list[str] = Field([], description="Texts at which a response ends too.")
    missing_eos_penalty: float | None = Field(
        None, gt=0, description="Taken from the score of a response that does not end by itself (null: nothing)."
    )
    missing_eos_score: float | None = Field(
        None, description="The score of a response that does not end by itself, whatever it says (null: its own)."
    )
    kl_coef: float = Field(0.05, ge=0, description="Weight of the penalty for moving away from the reference.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="Estimator of that distance: k1 plain, k2 half its square, k3 never negative."
    )
    whiten_rewards: bool = Field(False, description="Whether per-token rewards are scaled to unit variance.")
    whiten_advantages: bool = Field(True, description="Whether advantages are scaled to mean 0 and unit variance.")
    cliprange: float = Field(0.2, gt=0, description="How far an update may move a probability ratio from 1.")
    vf_coef: float = Field(0.1, ge=0, description="Weight of the critic's loss.")
    entropy_coef: float = Field(0.0, ge=0, description="Weight of a bonus for the entropy of the policy's choices.")
    cliprange_value: float = Field(0.2, gt=0, description="How far an update may move a value.")
    target_kl: float | None = Field(
        None, gt=0, description="PPO epochs of an update end when the policy has moved this far in nats a token."
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of later rewards.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalized advantage estimation.")
    local_rollout_forward_batch_size: int = Field(64, gt=0, description="Responses sampled and scored at a time.")
    checkpoint_steps: int | None = Field(None, gt=0, description="Updates between checkpoints (null: about ten a run).")
    keep_checkpoints: int = Field(2, gt=0, description="How many of the newest checkpoints are kept.")
    trace_every: int = Field(10, ge=0, description="Updates between traces, token by token, in ppo/traces (0: none).")
    trace_episodes: int = Field(4, gt=0, description="Episodes in each trace.")
    use: Literal["last", "best"] = Field("last", description="Which policy is handed on: the last, or best on eval.")
    eval: PpoEval = Field(PpoEval(every=10), description="How the policy is watched while PPO runs.")

    @property
    def batch_size(self) -> int:
        """Responses sampled for each update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def updates(self) -> int:
        """How many updates the stage makes in all."""
        return math.ceil(self.total_episodes / self.batch_size)

    @property
    def critic_kind(self) -> Literal["adapter", "head", "model"]:
        """What the critic is, after the default."""
        if self.critic is not None:
            return self.critic
        return "model" if self.engine == "trl" or self.lora is None else "adapter"

    def conflicts(self) -> Iterator[Conflict]:
        yield from self._what_the_engine_lacks()
        batch, parts = self.batch_size, self.num_mini_batches
        about = ("ppo.per_device_train_batch_size", "ppo.gradient_accumulation_steps")
        if batch % parts:
            yield Conflict(
                "ppo.num_mini_batches",
                f"a batch of {batch} does not divide into {parts} equal mini-batches",
                f"use a divisor of {batch}, or change per_device_train_batch_size",
                about=about,
            )
        elif self.engine == "trl" and self.whiten_rewards and batch // parts < SMALLEST_WHITENED_MINIBATCH:
            yield Conflict(
                "ppo.num_mini_batches",
                f"whiten_rewards needs mini-batches of at least {SMALLEST_WHITENED_MINIBATCH}, got {batch // parts}",
                "lower num_mini_batches, raise per_device_train_batch_size, or set whiten_rewards: false",
                about=(*about, "ppo.whiten_rewards"),
            )
        if batch % self.num_generations:
            yield Conflict(
                "ppo.num_generations",
                f"a batch of {batch} does not hold {self.num_generations} responses to each prompt",
                f"use a divisor of {batch}, or change per_device_train_batch_size",
                about=about,
            )
        if self.stop_token in ("off", "none", "no"):
            yield Conflict("ppo.stop_token", f"{self.stop_token!r} would be a token", "write null for no stop token")
        unending = self.stop_token is None and not self.stop_strings
        for key in ("missing_eos_penalty", "missing_eos_score"):
            if getattr(self, key) is not None and unending:
                yield Conflict(
                    f"ppo.{key}",
                    "needs an end token to miss, but stop_token is null",
                    f"set stop_token: eos, or {key}: null",
                    about=("ppo.stop_token", "ppo.stop_strings"),
                )
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            yield Conflict(
                "ppo.missing_eos_score",
                "the score of a response without an end is either lowered or replaced",
                "remove it, or missing_eos_penalty",
                about=("ppo.missing_eos_penalty",),
            )
        if self.critic == "adapter" and self.lora is None:
            yield Conflict(
                "ppo.critic", "an adapter needs LoRA, but all weights are trained", "use model or head",
                about=("ppo.lora",),
            )  # fmt: skip
        if not self.critic_trains_trunk and self.critic_kind != "head":
            yield Conflict(
                "ppo.critic_trains_trunk", "is for critic: head, which shares the policy's weights", "remove it",
                about=("ppo.critic",),
            )  # fmt: skip
        if self.critic_from is not None and self.critic_kind == "head":
            yield Conflict(
                "ppo.critic_from", "a head on the policy reads another policy's states", "use critic: adapter or model",
                about=("ppo.critic",),
            )  # fmt: skip
        for name in self.rewards or {}:
            if name != "reward" and not FUNCTION.fullmatch(name):
                yield Conflict("ppo.rewards", f"there is no scorer {name!r}", "use reward (the section) or module:name")

    def _what_the_engine_lacks(self) -> Iterator[Conflict]:
        if self.engine != "trl":
            return
        for key in OWN_ENGINE_KEYS:
            if key in self.model_fields_set:
                yield Conflict(
                    f"ppo.{key}", "TRL's PPOTrainer has no such option, or ignores it",
                    "remove it, or use engine: rlhfctl",
                    about=("ppo.engine",),
                )  # fmt: skip
        if self.kl_estimator == "k2":
            yield Conflict(
                "ppo.kl_estimator", "TRL's PPOTrainer has k1 and k3", "use one of them, or engine: rlhfctl",
                about=("ppo.engine",),
            )  # fmt: skip
        if self.stop_token not in ("eos", None):
            yield Conflict(
                "ppo.stop_token", "TRL's PPOTrainer knows eos and null here", "use one of them, or engine: rlhfctl",
                about=("ppo.engine",),
            )  # fmt: skip
        if self.gradient_accumulation_steps > 1:
            yield Conflict(
                "ppo.gradient_accumulation_steps",
                "TRL's PPOTrainer takes the wrong number of optimizer steps with gradient accumulation "
                "(measured: 6 where 12 are due)",
                "raise per_device_train_batch_size instead, or use engine: rlhfctl",
                about=("ppo.engine",),
            )

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), OWN_ENGINE_KEYS if self.engine == "trl" else ())


class Controls(Section):
    """What else could explain a better score than learning, and is measured beside it."""

    temperatures: list[float] = Field(
        [0.8, 0.6, 0.0],
        description="Lower temperatures at which both sides are sampled, and the reference alone (0: greedy).",
    )
    matched_entropy: bool = Field(
        True, description="Whether the reference is sampled at the temperature that gives it the policy's entropy."
    )
    best_of_n: int = Field(
        4, ge=0, description="Compare with the best of so many samples of the reference, by PPO's own scorer (0: not)."
    )
    samples_per_prompt: int = Field(
        2, gt=0, description="Responses per prompt and temperature in each control (greedy ones are drawn once)."
    )

    def conflicts(self, temperature: float, samples: int) -> Iterator[Conflict]:
        at = "compare.controls"
        if any(one < 0 or one >= temperature for one in self.temperatures):
            yield Conflict(
                f"{at}.temperatures", f"a control is colder than compare.temperature ({temperature:g}), and 0 or more",
                "remove the others", about=("compare.temperature",),
            )  # fmt: skip
        if len(set(self.temperatures)) < len(self.temperatures):
            yield Conflict(f"{at}.temperatures", "a temperature is listed more than once", "list each once")
        if self.samples_per_prompt > samples:
            yield Conflict(
                f"{at}.samples_per_prompt", f"is more than the {samples} of compare.samples_per_prompt",
                "lower it, or raise that", about=("compare.samples_per_prompt",),
            )  # fmt: skip
        if self.best_of_n == 1 or ("best_of_n" in self.model_fields_set and self.best_of_n > samples):
            yield Conflict(
                f"{at}.best_of_n", f"chooses among the {samples} samples per prompt of the reference",
                "use 2 up to that many, or 0 for none", about=("compare.samples_per_prompt",),
            )  # fmt: skip


class Compare(Section):
    """The verdict: policy against base on the test prompts."""

    samples_per_prompt: int = Field(4, gt=0, description="Responses that each model gives to each prompt.")
    temperature: float = Field(1.0, gt=0, description="Temperature at which responses are sampled.")
    max_new_tokens: int | None = Field(
        None, gt=0, description="Longest response in tokens (null: ppo.response_length, else 53)."
    )
    judges: list[str] = Field(
        ["gold", "reward_model"],
        min_length=1,
        description="Who scores: gold (built-in task), reward_model, reward_function, or module:name of a function.",
    )
    primary_judge: str | None = Field(None, description="Whose scores decide the verdict (null: the first judge).")
    batch_size: int = Field(64, gt=0, description="Responses sampled or scored at a time.")
    bootstrap_samples: int = Field(10_000, ge=100, description="Resamples behind each confidence interval.")
    controls: Controls | None = Field(
        Controls(), description="What else could explain the result, measured beside it (none: nothing is)."
    )

    @field_validator("controls", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "none" else value

    @property
    def resolved_controls(self) -> Controls | None:
        """The controls, defaults fitted to the main comparison: colder than it, and with no more samples."""
        if self.controls is None:
            return None
        best = min(self.controls.best_of_n, self.samples_per_prompt)
        fitted = {
            "temperatures": sorted((one for one in self.controls.temperatures if one < self.temperature), reverse=True),
            "best_of_n": best if best > 1 else 0,
            "samples_per_prompt": min(self.controls.samples_per_prompt, self.samples_per_prompt),
        }
        return self.controls.model_copy(update=fitted)

    @property
    def responses_per_prompt(self) -> int:
        """Responses that are sampled for each prompt, by both sides together, greedy ones and controls included."""
        count, controls = 2 * (self.samples_per_prompt + 1), self.resolved_controls
        if controls is not None:
            warm = sum(one > 0 for one in controls.temperatures)
            count += (2 * warm + int(controls.matched_entropy)) * controls.samples_per_prompt
        return count

    def conflicts(self) -> Iterator[Conflict]:
        if self.controls is not None and "controls" in self.model_fields_set:
            yield from self.controls.conflicts(self.temperature, self.samples_per_prompt)
        for judge in self.judges:
            if judge not in NAMED_JUDGES and not FUNCTION.fullmatch(judge):
                yield Conflict(
                    "compare.judges", f"there is no judge {judge!r}", f"use {', '.join(NAMED_JUDGES)} or module:name"
                )
        if len(set(self.judges)) < len(self.judges):
            yield Conflict("compare.judges", "a judge is listed more than once", "list each judge once")
        if self.primary_judge is not None and self.primary_judge not in self.judges:
            yield Conflict(
                "compare.primary_judge",
                f"{self.primary_judge!r} is not among the judges: {', '.join(self.judges)}",
                "add it to compare.judges, or name one of those",
                about=("compare.judges",),
            )


class Recipe(Section):
    """The whole run: model, data, and the stages in order; a stage without a section is not run."""

    name: str = Field(pattern=NAME, description="The run's name, and its folder's.")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of new weights, training order and sampling.")
    data_seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="Seed of the built-in data and of all splits: runs that differ in `seed` "
        "alone are trained and judged on the same rows."
    )  # fmt: skip
    folder: str | None = Field(
        None, min_length=1, description="Where reward functions are imported from; set in the resolved recipe."
    )
    model: Model = Field(description="Where the weights come from.")
    lora: Lora | None = Field(None, description="Adapters for every trained stage that does not say otherwise.")
    data: Data = Field(Data(), description="What is trained and tested on.")
    sft: Sft | None = Field(None, description="Supervised fine-tuning on demonstrations.")
    reward: Reward | None = Field(None, description="What scores a response.")
    ppo: Ppo | None = Field(None, description="Reinforcement learning against the reward.")
    compare: Compare | None = Field(None, description="The verdict on policy against base.")
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="Trackers that also get the metrics of every stage. TensorBoard's files stay in the run."
    )

    @model_validator(mode="after")
    def _resolve_and_check(self) -> Recipe:
        """Fill in what one section takes from another; then raise all conflicts as one error."""
        for name in ("sft", "reward", "ppo"):
            section: Sft | Reward | Ppo | None = getattr(self, name)
            ready = isinstance(section, Reward) and section.kind != "trained"
            if section is not None and not ready and "lora" not in section.model_fields_set:
                self._fill(name, section.model_copy(update={"lora": self.lora}))
        found = list(self.conflicts())
        if found:
            text = "\n".join(f"{conflict.key}: {conflict.what}; {conflict.fix}" for conflict in found)
            raise PydanticCustomError("conflicts", "{text}", {"text": text, "conflicts": found})
        if self.compare is not None:
            length = self.ppo.response_length if self.ppo else DEFAULT_RESPONSE_LENGTH
            resolved = {
                "primary_judge": self.compare.primary_judge or self.compare.judges[0],
                "max_new_tokens": self.compare.max_new_tokens or length,
                "controls": self.compare.resolved_controls,
            }
            self._fill("compare", self.compare.model_copy(update=resolved))
        return self

    def _fill(self, name: str, section: Section) -> None:
        """Set a field during validation, as a frozen dataclass does in its __post_init__."""
        self.__dict__[name] = section

    def conflicts(self) -> Iterator[Conflict]:
        yield from self.model.conflicts()
        yield from self.data.conflicts()
        for section in (self.sft, self.reward, self.ppo, self.compare):
            if section is not None:
                yield from section.conflicts()
        yield from self._missing_sections()
        yield from self._quantized()
        yield from self._float16()
        yield from self._lora_on_random_weights()
        yield from self._lengths()
        yield from self._judges()

    def _missing_sections(self) -> Iterator[Conflict]:
        stages = ("sft", "reward", "ppo", "compare")
        if all(getattr(self, stage) is None for stage in stages):
            yield Conflict("", "no stage to run", f"add a section: {', '.join(stages)}", about=stages)
        new_vocabulary = self.model.init is not None and self.model.init.tokens is None
        trained_reward = self.reward is not None and self.reward.kind == "trained"
        needs = [
            (self.sft is not None, "sft", "demonstrations", "to train on"),
            (new_vocabulary and self.sft is None, "model.init", "demonstrations", "to train the tokenizer on"),
            (trained_reward, "reward", "preferences", "to train on"),
            (self.ppo is not None, "ppo", "prompts", "to sample responses to"),
            (self.compare is not None, "compare", "prompts", "to compare on"),
        ]
        for needed, key, name, use in needs:
            if needed and getattr(self.data, name) is None:
                fix = f"add data.{name}"
                if key == "model.init":
                    fix += ", or list whole tokens under model.init.tokens"
                elif key == "reward":
                    fix += ", or name a ready scorer: reward.model or reward.function"
                yield Conflict(key, f"needs data.{name} {use}", fix, about=(f"data.{name}", "model.init.tokens"))
        if self.ppo is not None and self.reward is None:
            yield Conflict(
                "ppo", "needs something that scores responses", "add a reward section: `reward: {}` trains a model on "
                "data.preferences", about=("reward",),
            )  # fmt: skip
        prompts = self.data.prompts
        if self.ppo is not None and self.ppo.use == "best":
            about = ("data.prompts.eval", "ppo.eval.every")
            if prompts is not None and prompts.eval == 0:
                fix = "set data.prompts.eval above 0, or use: last"
                yield Conflict("ppo.use", "best is chosen on the eval prompts, but data.prompts.eval is 0", fix, about)
            if self.ppo.eval.every == 0:
                fix = "set ppo.eval.every above 0, or use: last"
                yield Conflict("ppo.use", "best is chosen by evaluations, but ppo.eval.every is 0", fix, about)
        if self.ppo is not None and prompts is not None and prompts.known_train_rows is not None:
            batch = self.ppo.batch_size // self.ppo.num_generations
            # TRL's loader drops a last batch that is not full, and then waits for a full one for ever.
            if 0 < prompts.known_train_rows < batch:
                yield Conflict(
                    "ppo.per_device_train_batch_size",
                    f"a batch of {batch} is more than the {prompts.known_train_rows} prompts left to train on",
                    "lower it, or raise the number of prompts",
                    about=tuple(f"data.prompts.{key}" for key in ("rows", "limit", "eval", "test")),
                )

    def _quantized(self) -> Iterator[Conflict]:
        if self.model.quantization is None or self.model.init is not None:
            return
        for name in ("sft", "reward", "ppo"):
            section: Sft | Reward | Ppo | None = getattr(self, name)
            trained = section is not None and (not isinstance(section, Reward) or section.kind == "trained")
            if section is not None and trained and section.lora is None:
                yield Conflict(
                    f"{name}.lora", "is null, but the weights of a quantized base cannot be trained",
                    "give the recipe a lora section, or take model.quantization out",
                    about=("lora", "model.quantization"),
                )  # fmt: skip
        if self.ppo is None or self.ppo.lora is None:
            return
        if self.ppo.engine == "trl":
            yield Conflict(
                "ppo.engine", "trl holds critic and reward model whole, beside a quantized base",
                "use engine: rlhfctl, where all roles share that base", about=("model.quantization",),
            )  # fmt: skip
        elif self.ppo.critic == "model":
            yield Conflict(
                "ppo.critic", "model is a whole model to train, but the base is quantized",
                "use critic: adapter or head", about=("model.quantization",),
            )  # fmt: skip

    def _float16(self) -> Iterator[Conflict]:
        if self.model.dtype != "float16":
            return
        what = "but float16 weights cannot be trained: the squares of their gradients round to 0"
        fix = "use dtype: bfloat16 or float32, or LoRA, whose adapters are float32"
        for name in ("sft", "reward", "ppo"):
            section: Sft | Reward | Ppo | None = getattr(self, name)
            if section is None or (isinstance(section, Reward) and section.kind != "trained"):
                continue
            if section.lora is None:
                yield Conflict(f"{name}.lora", f"is null, {what}", fix, about=("lora", "model.dtype"))
            elif isinstance(section, Ppo) and section.critic_kind == "model":
                about = ("ppo.engine", "model.dtype")
                yield Conflict("ppo.critic", f"is a whole model to train, {what}", fix, about=about)

    def _lora_on_random_weights(self) -> Iterator[Conflict]:
        if self.model.init is None:
            return
        because = "the random weights of model.init stay as they are beneath the adapters, so LoRA learns nothing"
        for name in ("sft",) if self.sft is not None else ("reward", "ppo"):
            section: Sft | Reward | Ppo | None = getattr(self, name)
            if section is None or section.lora is None:
                continue
            inherited = " (inherited from the top-level lora)" if section.lora is self.lora else ""
            fix = f"write `lora: null` under {name}, which trains all weights"
            if name != "sft":
                fix += ", or add an sft stage that does"
            yield Conflict(f"{name}.lora", because + inherited, fix, about=("model.init", "sft", "lora"))

    def _lengths(self) -> Iterator[Conflict]:
        if self.model.init is None:
            return
        context = self.model.init.max_position_embeddings
        prompt = self.data.max_prompt_length
        for key, response in (
            ("ppo.response_length", self.ppo.response_length if self.ppo else None),
            ("compare.max_new_tokens", self.compare.max_new_tokens if self.compare else None),
        ):
            if response is not None and response + (prompt or 1) > context:
                beside = f"a prompt of {prompt} (data.max_prompt_length)" if prompt else "any prompt"
                yield Conflict(
                    key,
                    f"{response} tokens beside {beside} do not fit into {context} positions",
                    "lower it, or raise model.init.max_position_embeddings",
                    about=("model.init.max_position_embeddings", "data.max_prompt_length"),
                )

    def _judges(self) -> Iterator[Conflict]:
        if self.compare is None:
            return
        prompts, reward = self.data.prompts, self.reward
        instead = "take it out of compare.judges"
        if "gold" in self.compare.judges and prompts is not None and not prompts.builtin:
            yield Conflict(
                "compare.judges", "gold scores only the built-in task, but data.prompts is a file", instead,
                about=("data.prompts.source",),
            )  # fmt: skip
        if "reward_model" in self.compare.judges and (reward is None or reward.kind == "function"):
            yield Conflict(
                "compare.judges", "reward_model needs a reward section that trains or names a model", instead,
                about=("reward", "reward.model", "reward.function"),
            )  # fmt: skip
        if "reward_function" in self.compare.judges and (reward is None or reward.kind != "function"):
            yield Conflict(
                "compare.judges", "reward_function needs reward.function", instead, about=("reward", "reward.function")
            )


def _without(data: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A section as written to the resolved recipe: without keys that would be refused when it is read again."""
    return {key: value for key, value in data.items() if key not in keys}
