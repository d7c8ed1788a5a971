"""Define the `data` section: the data sets, the source of their rows, and how they are split.

Longer than 400 lines because the data sets share the keys of a source.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rlhfctl.recipe.sections.base import Rule, Section, without

REVIEWS, PROGRAMS, SENTIMENT = "builtin:reviews", "builtin:programs", "builtin:sentiment"
BUILTIN_SOURCES = (REVIEWS, PROGRAMS, SENTIMENT)
REPLACED = "replaced_prompt"  # the column of a row's own prompt where data.prompts.fixed_prompt stands in its place
STAGE_SOURCE = "stage:"  # prefix of a stage's name whose artifact holds the rows
OWN_DATA_KEYS = (
    "columns", "label", "subset", "split", "revision", "turns", "as_conversations", "response_prefix", "bad_rows",
    "deduplicate", "max_chars",
)  # fmt: skip
BUILTIN_DATA_KEYS = ("rows", "label_noise")
# In a list of sources: keys beside the list are defaults for each source; other keys belong to one source.
SHARED_DATA_KEYS = (
    "columns", "label", "turns", "as_conversations", "response_prefix", "bad_rows", "deduplicate", "max_chars",
)  # fmt: skip
ONE_SOURCE_KEYS = ("source", "subset", "split", "revision", "limit", "rows", "label_noise")
DEFAULT_TEST_PROMPTS = 100
DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
LONGEST_ID = 200  # the Hub allows 96


def looks_like_id(source: str) -> bool:
    """Tell whether a data source that is no path here may be a Hub id: `name` or `owner/name`, with no file ending."""
    is_file = source.removesuffix(".gz").endswith(DATA_SUFFIXES)
    return not is_file and len(source) <= LONGEST_ID and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None


class Turns(Section):
    """Prefixes that mark the turns of a transcript."""

    user: str = Field("Human:", min_length=1, description="Prefix of a user's turn.")
    assistant: str = Field("Assistant:", min_length=1, description="Prefix of an assistant's turn.")
    system: str | None = Field(None, min_length=1, description="Prefix of the system message.")


_SOURCE = (
    f"A file ({', '.join(DATA_SUFFIXES)}; .gz too), a folder of such files or one saved by "
    "datasets, an id on the Hub, stage:NAME for the rows that a stage of this recipe makes, or a built-in "
    "task: builtin:reviews, builtin:programs (demonstrations and prompts, with tests), or builtin:sentiment (the same, "
    "with labels)."
)
_SOURCES = "Several sources instead of one, each with its weight."
LabelValue = str | int | float | bool


def _beside_list(key: str) -> Callable[[Source], bool]:
    return lambda source: source.kind == "list" and source.is_set(key) and bool(getattr(source, key))


def _own_data_beside_builtin(key: str) -> Callable[[Source], bool]:
    """Tell whether the key changes anything; `columns` does only if it names a column."""
    unsaid = (None, False, "")

    def broken(source: Source) -> bool:
        if source.kind != "builtin":
            return False
        value = getattr(source, key, None)
        return bool(value) if key == "columns" else source.is_set(key) and value not in unsaid

    return broken


_SOURCE_RULES: tuple[Rule[Source], ...] = (
    *(
        Rule(
            key,
            "is of one source, but sources lists them",
            "write it in the list",
            _beside_list(key),
            about=("sources",),
        )
        for key in ONE_SOURCE_KEYS
    ),
    Rule(
        "source",
        "missing",
        "add it: a file, a folder, an id on the Hub; or sources: a list of them",
        lambda source: source.kind == "missing",
        about=("sources",),
    ),
    Rule(
        "as_conversations",
        "makes a turn of each text, but turns finds several in it",
        "remove one",
        lambda source: source.kind in ("builtin", "own") and source.turns is not None and source.as_conversations,
        about=("turns",),
    ),
    Rule(
        "label_noise",
        "is for the built-in task, but the source is a file",
        "remove it",
        lambda source: source.kind == "own" and source.is_set("label_noise"),
        about=("source",),
    ),
    Rule(
        "rows",
        "is how many rows the built-in task generates, but the source is a file",
        "use limit",
        lambda source: source.kind == "own" and source.rows is not None,
        about=("source",),
    ),
    Rule(
        "source",
        "there is no {source!r}",
        f"use {' or '.join(BUILTIN_SOURCES)}, or a file",
        lambda source: source.kind == "builtin" and source.source not in BUILTIN_SOURCES,
    ),
    Rule(
        "rows",
        "{source} needs the number of rows to generate",
        "add it: rows: 2000",
        lambda source: source.kind == "builtin" and source.rows is None,
    ),
    Rule(
        "columns",
        "names columns of a file, but the source is {source}",
        "remove it",
        _own_data_beside_builtin("columns"),
    ),
    *(
        Rule(
            key,
            "is for one's own data, but the source is {source}",
            "remove it",
            _own_data_beside_builtin(key),
        )
        for key in OWN_DATA_KEYS
        if key != "columns"
    ),
)


class Source(Section):
    """The source of rows, the names of its columns, and which of its rows are used."""

    source: str = Field(min_length=1, description=_SOURCE)
    subset: str | None = Field(None, min_length=1, description="Configuration (subset) of a data set on the Hub.")
    split: str | None = Field(
        None,
        min_length=1,
        description="Split of a data set on the Hub or in a folder (null: train, or all).",
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of the data set on the Hub.")
    rows: int | None = Field(None, gt=0, description="Number of rows that the built-in task generates.")
    columns: dict[str, str | list[str]] = Field(
        {},
        description="Names of the file's columns, by rlhfctl's name: {prompt: question}; a.b is b within a; several "
        "columns make a list of responses, {responses: [a, b], label: winner}, or one text, {prompt: [instruction, "
        "input]}.",
    )
    turns: Turns | None = Field(
        None, description="Split texts that are transcripts into conversations, at these prefixes of turns."
    )
    as_conversations: bool = Field(
        False, description="Whether to make conversations of texts: the prompt a user's turn, the response an "
        "assistant's."
    )  # fmt: skip
    bad_rows: Literal["stop", "drop"] = Field(
        "stop", description="Treatment of rows that cannot be used: stop the run, or drop them."
    )
    deduplicate: bool = Field(False, description="Whether to drop rows that are equal to an earlier one.")
    max_chars: int | None = Field(None, gt=0, description="Maximum characters per row; longer rows are dropped.")
    limit: int | None = Field(None, gt=0, description="Maximum number of rows, from the first (null: all).")

    @property
    def parts(self) -> list[Source]:
        """The sources to read: those of a list, or this one."""
        listed: list[Source] | None = getattr(self, "sources", None)
        return [self] if listed is None else list(listed)

    @property
    def builtin(self) -> bool:
        return all(part.source.startswith("builtin:") for part in self.parts)

    @property
    def has_gold(self) -> bool:
        """Tell whether all rows are of the built-in task whose true preference is known."""
        return self.builtin and all(part.source not in (PROGRAMS, SENTIMENT) for part in self.parts)

    @property
    def kind(self) -> Literal["list", "missing", "builtin", "own"]:
        """The kind of this source: a list of sources, none, the built-in task, or the user's own data."""
        if self.parts != [self]:
            return "list"
        return "missing" if not self.source else "builtin" if self.builtin else "own"

    @property
    def known_rows(self) -> int | None:
        """Largest possible number of rows; None if only reading a file can tell."""
        bounds = [bound for bound in (self.rows, self.limit) if bound is not None]
        return min(bounds) if bounds else None

    RULES: ClassVar[tuple[Rule[Any], ...]] = _SOURCE_RULES

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        """Rewrite a list of sources as a section, and copy the keys beside the list into each source."""
        value = {"sources": value} if isinstance(value, list) and "sources" in cls.model_fields else value
        if not isinstance(value, dict) or not isinstance(value.get("sources"), list):
            return value
        return value | {"sources": [_with_shared(part, value) for part in value["sources"]]}

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused: tuple[str, ...] = ONE_SOURCE_KEYS
        if self.parts == [self]:
            unused = OWN_DATA_KEYS if self.builtin else BUILTIN_DATA_KEYS
        optional = ("sources", "eval_source", "test_source", "fixed_prompt", "heldout")
        absent = tuple(key for key in optional if getattr(self, key, None) is None)
        return without(handler(self), (*unused, *absent))


def _with_shared(part: Any, beside: dict[str, Any]) -> Any:
    """Add shared keys to a source, of a list or of a part of the prompts, that does not state them itself."""
    if not isinstance(part, dict) or str(part.get("source")).startswith("builtin:"):
        return part
    return {key: beside[key] for key in SHARED_DATA_KEYS if key in beside} | part


class Weighted(Section):
    """The weight of one source in a list of sources."""

    weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="How many times each row of this source is used: 2 is twice, 0.5 is one half of the rows, drawn by "
        "data_seed.",
    )


class Answered(Source):
    """Keys that all sources with responses share."""

    response_prefix: str = Field(
        "", description="Text put before each plain-text response, unless it or its prompt has white space there: ' '."
    )


class Compared(Answered):
    """Keys that all sources with several responses per prompt share."""

    label_noise: float = Field(0.1, ge=0, le=1, description="Fraction of built-in pairs whose labels are swapped.")
    label: dict[Literal["first", "second", "tie"], LabelValue | list[LabelValue]] | None = Field(
        None,
        description="Value of the column `label` where the first, the second or neither of two responses won; a list "
        "of values where several mean it.",
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
    sources: list[DemonstrationsPart] | None = Field(None, min_length=1, description=_SOURCES)
    heldout: float | None = Field(
        None,
        gt=0,
        le=0.9,
        description="Fraction of the prompts whose rows are held out of training; sft measures the loss on them after "
        "each epoch (null: none).",
    )


class Pretraining(Answered):
    """Texts for the next-token loss that ppo.ptx adds to PPO; a row is read as a demonstration is."""

    source: str = Field("", min_length=1, description=_SOURCE)
    sources: list[DemonstrationsPart] | None = Field(None, min_length=1, description=_SOURCES)


class Preferences(Compared):
    """Prompts with a chosen and a rejected response, for the reward stage."""

    source: str = Field("", min_length=1, description=_SOURCE)
    sources: list[PreferencesPart] | None = Field(None, min_length=1, description=_SOURCES)
    RULES: ClassVar[tuple[Rule[Preferences], ...]] = (
        Rule(
            "source",
            f"{PROGRAMS} has demonstrations and prompts, no preferences",
            "use reward.unit_tests, which needs none, or another source",
            lambda preferences: any(part.source == PROGRAMS for part in preferences.parts),
        ),
        Rule(
            "source",
            f"{SENTIMENT} has demonstrations and prompts, no preferences",
            "use reward.prompted_classifier, which needs none, or another source",
            lambda preferences: any(part.source == SENTIMENT for part in preferences.parts),
        ),
    )

    heldout: float = Field(
        0.15, gt=0, le=0.9, description="Fraction of prompts whose pairs are held out of training, for evaluation."
    )


class Prompts(Source):
    """Prompts without responses, split into those for training, for evaluation and for the verdict."""

    source: str = Field("", min_length=1, description=_SOURCE)
    sources: list[PromptsPart] | None = Field(None, min_length=1, description=_SOURCES)
    eval: int | None = Field(
        None,
        ge=0,
        description="Number of prompts kept for evaluation during PPO (null: none, or all of eval_source).",
    )
    test: int | None = Field(
        None, ge=1, description="Number of prompts kept for compare (null: 100, or all of test_source)."
    )
    eval_source: Source | None = Field(
        None, description="Separate source of the evaluation prompts; a name alone is read with the keys beside it."
    )
    test_source: Source | None = Field(
        None, description="Separate source of the test prompts; a name alone is read with the keys beside it."
    )

    fixed_prompt: str | None = Field(
        None,
        min_length=1,
        description="One text that the policy answers in every row, in place of the row's prompt; rewards find that "
        f"prompt in the column `{REPLACED}`.",
    )

    @property
    def known_train_rows(self) -> int | None:
        if self.known_rows is None:
            return None
        kept = [(self.eval, self.eval_source), (self.test, self.test_source)]
        return self.known_rows - sum(count or 0 for count, apart in kept if apart is None)

    RULES: ClassVar[tuple[Rule[Prompts], ...]] = (
        Rule(
            "test",
            "eval ({eval}) and test ({test}) leave none of the {known_rows} prompts to train on",
            "lower them, or raise the number of rows",
            lambda prompts: prompts.known_train_rows is not None and prompts.known_train_rows <= 0,
            about=("eval", "rows", "limit"),
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _with_counts(cls, value: Any) -> Any:
        """Rewrite sources that are given by name alone as sections, and fill in counts that are not given."""
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


class Data(Section):
    """The data sets, and the maximum length of prompts."""

    demonstrations: Demonstrations | None = Field(None, description="Prompts with good responses, for sft.")
    preferences: Preferences | None = Field(None, description="Chosen and rejected responses, for reward.")
    pretraining: Pretraining | None = Field(
        None, description="Texts for the next-token loss that ppo.ptx adds to PPO; read as demonstrations are."
    )
    prompts: Prompts | None = Field(None, description="Prompts for ppo and compare.")
    max_prompt_length: int | None = Field(
        None, gt=0, description="Maximum prompt length in tokens (null: what the context leaves beside the response)."
    )
    overlong_prompts: Literal["drop", "truncate"] = Field(
        "drop", description="Treatment of longer prompts: drop them, or truncate their content."
    )
    leaks: Literal["warn", "drop"] = Field(
        "warn", description="Treatment of demonstrations and preferences that answer a test prompt: warn, or drop them."
    )

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older runs do not know `pretraining`: it is left out unless it is set, so that they stay unchanged.
        return without(handler(self), ("pretraining",) if self.pretraining is None else ())
