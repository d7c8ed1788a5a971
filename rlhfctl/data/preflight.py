"""Check the data with the tokenizer before the first weights load, and raise the errors that stages would meet later.

A stop token that the tokenizer lacks, conversations without a chat template, a template that fails, fewer prompts than
a batch: each error would else appear hours later, when its stage starts. Reads rows and a tokenizer; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder, is_conversation, stop_token_id
from rlhfctl.data.load import require_a_batch
from rlhfctl.data.splits import split_in_half
from rlhfctl.data.text_files import first_of
from rlhfctl.data.types import PreferenceSplit, PromptSplit, Row, Rows, repeated
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
    refused: dict[int, str] = {}  # identity of a row -> the reason
    locations: dict[int, str] = {}
    first: DataError | None = None
    masked = recipe.sft is not None and bool(recipe.sft.trainer.get("assistant_only_loss"))
    unwritten: dict[str, list[str]] = {}  # role -> rows whose text the template leaves out
    within: dict[str, list[str]] = {}  # special token -> rows with the token in their text
    for row in Work(f"rendering {rows.name}", len(rows.rows)).through(rows.rows):
        if is_conversation(row):
            try:
                _encode(encoder, rows.name, row, masked)
                for messages in _conversations(row):
                    for role in encoder.unwritten(messages, row.get("tools")):
                        unwritten.setdefault(role, []).append(rows.location_of(row))
                    for token in encoder.tokens_within(messages):
                        within.setdefault(token, []).append(rows.location_of(row))
            except DataError as error:
                first = first or error
                locations[id(row)] = rows.location_of(row)
                refused[id(row)] = f"{locations[id(row)]}: {error.what}"
    new_notes_of_rows = [*_leaves_out(unwritten), *_reads_as_tokens(within)]
    rows = replace(rows, notes=(*rows.notes, *(note for note in new_notes_of_rows if note not in rows.notes)))
    if first is None:
        return _with_note_on_tools(encoder, rows)
    refusals, total = list(refused.values()), len({id(row) for row in rows.rows})  # a mix of sources may repeat a row
    if len(refusals) == total:  # a missing or broken template fails on every row
        raise DataError(f"{first.what} (data.{rows.name})", where=first.where, fix=first.fix)
    if kept := [reason for row, reason in refused.items() if locations[row] not in rows.droppable]:
        raise DataError(
            f"{len(kept)} of {total} rows of data.{rows.name} cannot be used:{first_of(kept)}",
            where=first.where,
            fix=f"correct or remove these rows, leave them out ({_drop_key(recipe, rows.name)}: drop), or set "
            "model.chat_template to one that takes them",
        )
    note = f"{len(refusals)} of {total} rows are refused by the chat template and dropped, the first: {refusals[0]}"
    split = rows.split
    if split is not None:
        parts: dict[str, list[Any]] = {
            name: [kept for item in part for kept in repeated(item, lambda row: id(row) not in refused)]
            for name, part in vars(split).items()
        }
        if gone := [name for name, part in vars(split).items() if part and not parts[name]]:
            raise DataError(
                f"the chat template refuses each row of data.{rows.name} that is for {gone[0]}: {first.what}",
                where=first.where,
                fix=first.fix,
            )
        split = type(split)(**parts)
    fitting = rows.only(lambda row: id(row) not in refused, notes=(*rows.notes, note), split=split)
    return _with_note_on_tools(encoder, fitting)


def _with_note_on_tools(encoder: Encoder, rows: Rows) -> Rows:
    """Add a note to the rows if the chat template does not write out their tools."""
    offered = [row for row in rows.rows if row.get("tools") and is_conversation(row)]
    note = f"the tools of {len(offered)} rows are not read: the chat template does not write them out"
    if not offered or note in rows.notes:
        return rows
    row = offered[0]
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


def _leaves_out(unwritten: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for role, locations in unwritten.items():
        count = len(set(locations))
        yield f"the chat template leaves out or changes the {role}'s text in {count} rows, the first: {locations[0]}"


def _reads_as_tokens(within: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for token, locations in within.items():
        yield (
            f"{token} stands in the text of {len(set(locations))} rows, where it is read as a token and not as text, "
            f"the first: {locations[0]}"
        )


def _conversations(row: Row) -> list[list[Any]]:
    """Return the whole conversations of a row: one, or one per side of a pair."""
    prompt = row["messages"] if "messages" in row else row["prompt"]
    ends = [row[name] for name in ("completion", "chosen", "rejected") if name in row] or [[]]
    return [[*prompt, *end] for end in ends]
