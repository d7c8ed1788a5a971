"""Check the data with the tokenizer before the first weights load, and raise the errors that stages would meet later.

A stop token that the tokenizer lacks, conversations without a chat template, a template that fails, fewer prompts than
a batch: each error would else appear hours later, when its stage starts. Reads rows and a tokenizer; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder, is_conversation, stop_token_id
from rlhfctl.data.labelled import check_labelled
from rlhfctl.data.load import require_a_batch
from rlhfctl.data.splits import split_in_half
from rlhfctl.data.text_files import first_of
from rlhfctl.data.types import Comparison, PreferenceGroup, PreferenceSplit, PromptSplit, Row, Rows, examples_of
from rlhfctl.errors import DataError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import Recipe


def check(
    recipe: Recipe,
    data: Mapping[str, Rows],
    stages: Collection[str],
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Rows]:
    """Raise the RecipeError or DataError that the stages to come would raise. `tokenizer` None: it is not known.

    Returns the data sets without the rows that the chat template refuses, if `bad_rows: drop` allows it; their notes
    count them.
    """
    section = recipe.ppo
    if section is not None and "ppo" in stages and "prompts" in data:
        split = data["prompts"].split
        assert isinstance(split, PromptSplit)
        require_a_batch(len(split.train), section)  # the stage may drop over-long prompts later, and reports it
    classifier = None if recipe.reward is None else recipe.reward.prompted_classifier
    if classifier is not None and "prompts" in data:
        parts = data["prompts"].split
        assert isinstance(parts, PromptSplit)
        check_labelled(classifier, parts, tokenizer if classifier.model is None else None)
    in_half = recipe.reward is not None and recipe.reward.heldout and {"reward", "heldout"} & set(stages)
    if in_half and "preferences" in data:
        preferences = data["preferences"].split
        assert isinstance(preferences, PreferenceSplit)
        # Raises where one prompt cannot be shared.
        split_in_half(preferences.train, recipe.data_seed, steady=recipe.has_steady_splits)
    if tokenizer is None:
        return dict(data)
    encoder = Encoder(tokenizer)
    fitting = {name: _encodable(encoder, rows, recipe) for name, rows in data.items()}
    if section is not None and "ppo" in stages and section.stop_token is not None:
        stop_token_id(section.stop_token, tokenizer)
    return fitting


def new_notes(before: Mapping[str, Rows], after: Mapping[str, Rows]) -> list[str]:
    """Return the sentences that `check` added to the notes of the data sets."""
    return [f"data.{name}: {note}" for name, rows in after.items() for note in rows.notes[len(before[name].notes) :]]


def _encodable(encoder: Encoder, rows: Rows, recipe: Recipe) -> Rows:
    """Return the rows whose conversations the chat template accepts; with bad_rows: stop the others are an error."""
    refused = bytearray(len(rows.rows))  # per row 1 if the template refuses it
    refusals: list[str] = []  # reasons of refused rows, of a row that a mix repeats one
    total, kept = 0, []  # rows without those that a mix repeats; reasons of rows that may not be dropped
    first: DataError | None = None
    masked = recipe.sft is not None and bool(recipe.sft.trainer.get("assistant_only_loss"))
    unwritten: dict[str, _Counted] = {}  # role -> rows whose text the template leaves out
    within: dict[str, _Counted] = {}  # special token -> rows with the token in their text
    last: Any = None
    numbered = enumerate(Work(f"rendering {rows.name}", len(rows.rows)).through(_placed(rows)))
    for number, (row, location, place, comparison) in numbered:
        repeats, last = (location, comparison, row) == last, (location, comparison, row)
        total += not repeats
        if is_conversation(row):
            try:
                _encode(encoder, rows.name, row, masked)
                for messages in _conversations(row):
                    for role in encoder.unwritten(messages, row.get("tools")):
                        unwritten.setdefault(role, _Counted()).add(location)
                    for token in encoder.tokens_within(messages):
                        within.setdefault(token, _Counted()).add(location)
            except DataError as error:
                first, refused[number] = first or error, 1
                if not repeats:
                    refusals.append(f"{location}: {error.what}")
                    if not (rows.droppable and rows.droppable[place]):
                        kept.append(refusals[-1])
    new_notes_of_rows = [*_leaves_out(unwritten), *_reads_as_tokens(within)]
    rows = replace(rows, notes=(*rows.notes, *(note for note in new_notes_of_rows if note not in rows.notes)))
    if first is None:
        return _with_note_on_tools(encoder, rows)
    if len(refusals) == total:  # a missing or broken template fails on every row
        raise DataError(f"{first.what} (data.{rows.name})", where=first.where, fix=first.fix)
    if kept:
        raise DataError(
            f"{len(kept)} of {total} rows of data.{rows.name} cannot be used:{first_of(kept)}",
            where=first.where,
            fix=f"correct or remove these rows, leave them out ({_drop_key(recipe, rows.name)}: drop), or set "
            "model.chat_template to one that takes them",
        )
    note = f"{len(refusals)} of {total} rows are refused by the chat template and dropped, the first: {refusals[0]}"
    fitting = rows.only(lambda number, row: not refused[number], notes=(*rows.notes, note))
    if gone := [name for name, part in rows.places.items() if part and not fitting.places[name]]:
        raise DataError(
            f"the chat template refuses each row of data.{rows.name} that is for {gone[0]}: {first.what}",
            where=first.where,
            fix=first.fix,
        )
    return _with_note_on_tools(encoder, fitting)


def _placed(rows: Rows) -> Iterator[tuple[Row, str, int, Comparison | None]]:
    """Yield each of `rows.rows` with its location, the place of its item, and its comparison in a group."""
    for place, (item, location) in enumerate(rows.located):
        comparisons = item.comparisons if isinstance(item, PreferenceGroup) else [None]
        for row, comparison in zip(examples_of(item), comparisons, strict=True):
            yield row, location, place, comparison


@dataclass
class _Counted:
    """Count locations, each once; the same one may come several times in a row."""

    count: int = 0
    first: str = ""
    last: str = ""

    def add(self, location: str) -> None:
        self.first = self.first or location
        self.count += location != self.last
        self.last = location


def _with_note_on_tools(encoder: Encoder, rows: Rows) -> Rows:
    """Add a note to the rows if the chat template does not write out their tools."""
    count, row = 0, Row()
    for one in rows.rows:
        if one.get("tools") and is_conversation(one):
            count, row = count + 1, row or one
    note = f"the tools of {count} rows are not read: the chat template does not write them out"
    if not count or note in rows.notes:
        return rows
    messages, tools = row["messages"] if "messages" in row else row["prompt"], row["tools"]
    written = encoder.prompt(messages, tools) != encoder.prompt(messages)
    return rows if written else replace(rows, notes=(*rows.notes, note))


def _encode(encoder: Encoder, name: str, row: Row, masked: bool) -> None:
    """Encode the row as its stage will; `masked`: sft takes losses on the assistant's turns only."""
    if name == "prompts":
        encoder.prompt(row["prompt"], row.get("tools"))
    elif name == "preferences":
        for side in ("chosen", "rejected"):
            encoder.pair(row["prompt"], row[side], row.get("tools"))
    else:
        encoder.demonstration(row, assistant_only_loss=masked)


def _drop_key(recipe: Recipe, name: str) -> str:
    section = getattr(recipe.data, name)
    several = any(getattr(section, key, None) for key in ("sources", "eval_source", "test_source"))
    return f"in data.{name}, beside their source, bad_rows" if several else f"data.{name}.bad_rows"


def _leaves_out(unwritten: Mapping[str, _Counted]) -> Iterator[str]:
    for role, of in unwritten.items():
        yield f"the chat template leaves out or changes the {role}'s text in {of.count} rows, the first: {of.first}"


def _reads_as_tokens(within: Mapping[str, _Counted]) -> Iterator[str]:
    for token, of in within.items():
        yield (
            f"{token} stands in the text of {of.count} rows, where it is read as a token and not as text, "
            f"the first: {of.first}"
        )


def _conversations(row: Row) -> list[list[Any]]:
    """Return the whole conversations of a row: one, or one per side of a pair."""
    prompt = row["messages"] if "messages" in row else row["prompt"]
    ends = [row[name] for name in ("completion", "chosen", "rejected") if name in row] or [[]]
    return [[*prompt, *end] for end in ends]
