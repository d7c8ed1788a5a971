"""Find training rows that answer a test prompt, and remove them if the recipe says so.

A verdict on prompts that a stage was trained to answer measures memory: `run`, `validate --deep`, `plan` and `data`
warn of each such prompt, and `data.leaks: drop` removes the rows. Reads checked rows; no model, no tokenizer. Leaves
out prompts that are similar but not equal, and plain texts, in which the end of the prompt is unknown. The other check
across data sets is here too: whether one holds conversations and another texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlhfctl import fs
from rlhfctl.errors import DataError
from rlhfctl.recipe.sections.data import REPLACED

if TYPE_CHECKING:  # load.py imports this file
    from rlhfctl.data.types import Prompt, Row, Rows

TRAINED_ON = ("demonstrations", "preferences", "pretraining")
_SHOWN = 48


def answered_keys(row: Row) -> set[str]:
    """Return keys of the prompts that training on `row` teaches an answer to: its own, and those of earlier turns."""
    messages = row.get("messages", row.get("prompt"))
    keys = {leak_key(own_prompt(row))} if row.get("prompt") is not None else set()
    if isinstance(messages, list):
        ends = (end for end, message in enumerate(messages) if end and message["role"] == "assistant")
        keys |= {leak_key(messages[:end]) for end in ends}
    return keys


def own_prompt(row: Row) -> Prompt:
    """Return the prompt by which a row is known: its own, also where a fixed prompt stands in its place."""
    own: Prompt = row[REPLACED] if REPLACED in row else row["prompt"]
    return own


def leak_key(prompt: Prompt) -> str:
    """Return the key by which a prompt equals a test prompt: words and roles, without white space and capitals.

    A conversation of one user turn equals its text: a file may be read as text in one data set and as turns in another.
    """
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]["content"]
    elif isinstance(prompt, list):
        prompt = [{"role": message["role"], "content": _plain(message["content"])} for message in prompt]
    return _plain(prompt) if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def find_leaks(loaded: Mapping[str, Rows]) -> Iterator[str]:
    """Return a sentence for each data set whose rows answer prompts of the verdict."""
    split = loaded["prompts"].split if "prompts" in loaded else None
    test = {leak_key(own_prompt(row)): own_prompt(row) for row in getattr(split, "test", ())}
    sets: list[tuple[str, Sequence[Row]]] = [(name, loaded[name].rows) for name in TRAINED_ON if name in loaded]
    for name, rows in [*sets, ("training prompts of ppo", getattr(split, "train", ()))]:
        leaked = sorted({key for row in rows for key in answered_keys(row) if key in test})
        if leaked:
            yield f"{len(leaked)} of {len(test)} test prompts are in the {name} too, e.g. {_begin(test[leaked[0]])!r}"


def without_leaks(rows: Rows, test: Iterable[Row]) -> Rows:
    """Remove the rows that answer a test prompt; a note counts them, and the fingerprint includes the removal."""
    keys = {leak_key(own_prompt(row)) for row in test}
    if not keys or not any(answered_keys(row) & keys for row in rows.rows):
        return rows
    kept = rows.only(lambda place, row: not answered_keys(row) & keys)
    dropped = len(rows.rows) - len(kept.rows)
    if not kept.rows:
        raise DataError(
            f"all {len(rows.rows)} rows answer a test prompt, and data.leaks: drop leaves none",
            where=f"data.{rows.name}",
            fix="lower data.prompts.test, or take test prompts from another source",
        )
    note = f"{dropped} of {len(rows.rows)} rows answer a test prompt and are dropped (data.leaks: drop)"
    fingerprint = fs.hash_json_list(kept.rows, before=rows.fingerprint)
    return replace(kept, fingerprint=fingerprint, notes=(*rows.notes, note))


def _begin(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return " ".join(text.split())[:_SHOWN]
