"""Find training rows that answer a test prompt, and leave them out where the recipe says so.

Reads checked rows; no model, no tokenizer. A verdict on prompts that a stage was trained to answer measures memory, so
`run`, `validate --deep`, `plan` and `data` warn of each such prompt, and `data.leaks: drop` removes the rows. Left out:
prompts that are alike but not equal, and plain texts, in which nobody can say where the prompt ends. The other thing to
see by looking across the data sets stands here too: that one holds conversations and another texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlhfctl import fs
from rlhfctl.errors import DataError

if TYPE_CHECKING:  # data.py calls this file
    from rlhfctl.data.types import Prompt, Row, Rows

TRAINED_ON = ("demonstrations", "preferences")
_SHOWN = 48


def answered_keys(row: Row) -> set[str]:
    """Keys of the prompts that training on `row` teaches an answer to: its own, and that of each earlier turn."""
    messages = row.get("messages", row.get("prompt"))
    keys = {leak_key(row["prompt"])} if row.get("prompt") is not None else set()
    if isinstance(messages, list):
        ends = (end for end, message in enumerate(messages) if end and message["role"] == "assistant")
        keys |= {leak_key(messages[:end]) for end in ends}
    return keys


def leak_key(prompt: Prompt) -> str:
    """What makes a prompt the same as a test prompt: its words and roles; white space and capitals do not count.

    A conversation of one user turn is the same as its text: one file may be read as text here and as turns there.
    """
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]["content"]
    elif isinstance(prompt, list):
        prompt = [{"role": message["role"], "content": _plain(message["content"])} for message in prompt]
    return _plain(prompt) if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def find_leaks(loaded: Mapping[str, Rows]) -> Iterator[str]:
    """Give a sentence for each data set whose rows answer prompts of the verdict."""
    split = loaded["prompts"].split if "prompts" in loaded else None
    test = {leak_key(row["prompt"]): row["prompt"] for row in getattr(split, "test", ())}
    sets: list[tuple[str, Sequence[Row]]] = [(name, loaded[name].rows) for name in TRAINED_ON if name in loaded]
    for name, rows in [*sets, ("training prompts of ppo", getattr(split, "train", ()))]:
        found = sorted(_keys_of(rows) & test.keys())
        if found:
            yield f"{len(found)} of {len(test)} test prompts are in the {name} too, e.g. {_begin(test[found[0]])!r}"


def without_leaks(rows: Rows, test: Iterable[Row]) -> Rows:
    """Return `rows` without those that answer a test prompt; a note counts them, and the fingerprint tells them."""
    keys = {leak_key(row["prompt"]) for row in test}
    kept = rows.only(lambda row: not answered_keys(row) & keys)
    dropped = len(rows.rows) - len(kept.rows)
    if not dropped:
        return rows
    if not kept.rows:
        raise DataError(
            f"all {len(rows.rows)} rows answer a test prompt, and data.leaks: drop leaves none",
            where=f"data.{rows.name}",
            fix="lower data.prompts.test, or take test prompts from another source",
        )
    note = f"{dropped} of {len(rows.rows)} rows answer a test prompt and are dropped (data.leaks: drop)"
    fingerprint = fs.hash_json([rows.fingerprint, kept.rows])
    return replace(kept, fingerprint=fingerprint, notes=(*rows.notes, note))


def _keys_of(rows: Iterable[Row]) -> set[str]:
    return {key for row in rows for key in answered_keys(row)}


def _begin(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return " ".join(text.split())[:_SHOWN]


def mixed_kinds(loaded: Mapping[str, Rows]) -> Iterator[str]:
    """Say where one data set holds conversations and another texts: a stage would then meet what it was not taught."""
    kinds: dict[str, list[str]] = {"conversations": [], "texts": []}
    for name, rows in loaded.items():
        row = rows.rows[0]
        talks = "messages" in row or isinstance(row.get("prompt"), list)
        kinds["conversations" if talks else "texts"].append(name)
    if kinds["conversations"] and kinds["texts"]:
        texts, chats = (" and ".join(f"data.{name}" for name in kinds[kind]) for kind in ("texts", "conversations"))
        yield (
            f"{texts} hold texts, but {chats} hold conversations: the chat template is written around some rows and "
            f"not around others, so the stages read different languages. Set as_conversations: true for {texts}, or "
            "give texts everywhere"
        )
