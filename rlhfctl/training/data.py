"""Rows: read from JSONL or the built-in task, checked one by one, split by prompt.

Reads the recipe's `data` section; gives plain lists of rows with a fingerprint. No model, no tokenizer, no torch: all
rows of a run are checked before anything heavy loads. Turning rows into ids is encoding.py's.

A *prompt* is a string or a list of messages ({"role", "content"}); a *completion* likewise. Shapes are TRL's:
prompt+completion, messages, or text for demonstrations; prompt+chosen+rejected for preferences; prompt alone, or
messages that end with the user's turn, for prompts. Other columns of prompts are kept for reward functions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Data, Demonstrations, Preferences, Prompts

BUILTIN = "builtin:"
ROLES = ("system", "user", "assistant", "tool", "developer")
_SHOWN_BAD_ROWS = 5

Row = dict[str, Any]
Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Checked rows and the fingerprint of where they came from."""

    name: str
    rows: list[Row]
    fingerprint: str


@dataclass(frozen=True)
class PreferenceSplit:
    train: list[Row]
    heldout: list[Row]


@dataclass(frozen=True)
class PromptSplit:
    train: list[Row]
    eval: list[Row]
    test: list[Row]


# ---------------------------------------------------------------- loading


def load_demonstrations(section: Demonstrations, seed: int) -> Rows:
    """Rows with prompt+completion, messages or text."""
    return _load("demonstrations", section, seed, _check_demonstration)


def load_preferences(section: Preferences, seed: int) -> Rows:
    """Rows with prompt, chosen, rejected."""
    return _load("preferences", section, seed, _check_preference)


def load_prompts(section: Prompts, seed: int) -> Rows:
    """Rows with prompt, and whatever other columns the file has."""
    return _load("prompts", section, seed, _check_prompt)


NAMES = ("demonstrations", "preferences", "prompts")


def check_all(data: Data, seed: int, names: Collection[str] = NAMES) -> dict[str, Rows]:
    """The recipe's data sets (of those in `names`), loaded and checked. DataError for the first one with bad rows."""
    loaded: dict[str, Rows] = {}
    if data.demonstrations is not None and "demonstrations" in names:
        loaded["demonstrations"] = load_demonstrations(data.demonstrations, seed)
    if data.preferences is not None and "preferences" in names:
        loaded["preferences"] = load_preferences(data.preferences, seed)
        split_preferences(data.preferences, loaded["preferences"].rows, seed)
    if data.prompts is not None and "prompts" in names:
        loaded["prompts"] = load_prompts(data.prompts, seed)
        split_prompts(data.prompts, loaded["prompts"].rows, seed)
    return loaded


def _load(
    name: str,
    section: Demonstrations | Preferences | Prompts,
    seed: int,
    check: Callable[[Row], Row | str],
) -> Rows:
    if section.source.startswith(BUILTIN):
        rows = _generate(name, section, seed)
        fingerprint = fs.hash_json(rows)
        places = [f"{section.source} row {index + 1}" for index in range(len(rows))]
    else:
        path = Path(section.source)
        rows, places = read_jsonl(path)
        fingerprint = fs.hash_file(path)
    for ours, theirs in section.columns.items():
        if not any(theirs in row for row in rows):
            have = sorted({key for row in rows for key in row})
            raise DataError(
                f"no row has the column {theirs!r} that data.{name}.columns.{ours} names",
                where=section.source,
                fix=f"the file's columns are: {', '.join(have) or 'none'}",
            )
    rows = [_rename(row, section.columns) for row in rows]
    checked: list[Row] = []
    bad: list[str] = []
    for row, place in zip(rows, places, strict=True):
        result = check(row)
        if isinstance(result, str):
            bad.append(f"{place}: {result}")
        else:
            checked.append(result)
    if bad:
        more = len(bad) - _SHOWN_BAD_ROWS
        shown = bad[:_SHOWN_BAD_ROWS] + ([f"and {more} more"] if more > 0 else [])
        raise DataError(
            f"{len(bad)} of {len(rows)} rows of data.{name} cannot be used:\n    " + "\n    ".join(shown),
            fix="correct or remove these rows, or map the file's columns with `columns: {ours: theirs}`",
        )
    if not checked:
        raise DataError(f"data.{name} holds no rows", where=section.source, fix="name a file with at least one row")
    if section.limit is not None:
        checked = checked[: section.limit]
    return Rows(name, checked, fingerprint)


def _generate(name: str, section: Demonstrations | Preferences | Prompts, seed: int) -> list[Row]:
    from rlhfctl.world import reviews

    count = section.rows
    assert count is not None  # the schema requires it for a built-in source
    if isinstance(section, Preferences):
        return [dict(row) for row in reviews.preferences(count, seed, section.label_noise)]
    make = reviews.demonstrations if name == "demonstrations" else reviews.prompts
    return [dict(row) for row in make(count, seed)]


def read_jsonl(path: Path) -> tuple[list[Row], list[str]]:
    """(objects, their places "file:line") of a JSONL file; DataError names every line that is not one."""
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        hint = (
            f"in that folder: {', '.join(sorted(near)[:6])}"
            if near
            else "check the path; it is read relative to the recipe"
        )
        raise DataError("the data file does not exist", where=str(path), fix=hint)
    rows: list[Row] = []
    places: list[str] = []
    bad: list[str] = []
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            place = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if not line.strip():
                    continue
                value = json.loads(line)
                if "\\ud" in line or "\\uD" in line:  # JSON lets half a surrogate pair pass, tokenizers do not
                    json.dumps(value, ensure_ascii=False).encode("utf-8")
            except UnicodeDecodeError:
                bad.append(f"{place}: not UTF-8 text")
                continue
            except UnicodeEncodeError as error:
                bad.append(
                    f"{place}: \\u{ord(error.object[error.start]):04x} is half a surrogate pair, not a character"
                )
                continue
            except json.JSONDecodeError as error:
                bad.append(f"{place}: not a JSON object ({error.msg} at character {error.pos + 1})")
                continue
            if not isinstance(value, dict):
                bad.append(f"{place}: expected a JSON object, got {_type_name(value)}")
                continue
            rows.append(value)
            places.append(place)
    if bad:
        more = len(bad) - _SHOWN_BAD_ROWS
        shown = bad[:_SHOWN_BAD_ROWS] + ([f"and {more} more"] if more > 0 else [])
        raise DataError(
            f"{len(bad)} line{'s' if len(bad) > 1 else ''} cannot be read:\n    " + "\n    ".join(shown),
            fix="one JSON object a line, in UTF-8",
        )
    if not rows:
        raise DataError("the data file is empty", where=str(path), fix="one JSON object a line, in UTF-8")
    return rows, places


def _rename(row: Row, columns: dict[str, str]) -> Row:
    if not columns:
        return row
    theirs = set(columns.values())
    renamed = {key: value for key, value in row.items() if key not in theirs and key not in columns}
    return renamed | {ours: row[name] for ours, name in columns.items() if name in row}


# ---------------------------------------------------------------- checking: the row to use, or what is wrong with it


def _check_demonstration(row: Row) -> Row | str:
    row = {name: value for name, value in row.items() if value is not None}  # null is how some exports say: not there
    if "messages" in row:
        problem = _bad_messages(row["messages"], "messages", last="assistant")
        return problem or {"messages": row["messages"]}
    if "prompt" in row or "completion" in row:
        problem = _missing(row, "prompt", "completion") or _bad_prompt(row["prompt"])
        problem = problem or _bad_completion(row["completion"], "completion", row["prompt"])
        return problem or {"prompt": row["prompt"], "completion": row["completion"]}
    if "text" in row:
        if not isinstance(row["text"], str):
            return f"text: expected a string, got {_type_name(row['text'])}"
        return {"text": row["text"]} if row["text"].strip() else "text is empty"
    return f"needs prompt and completion, or messages, or text; it has {_columns(row)}"


def _check_preference(row: Row) -> Row | str:
    problem = _missing(row, "prompt", "chosen", "rejected") or _bad_prompt(row["prompt"])
    for name in ("chosen", "rejected"):
        problem = problem or _bad_completion(row[name], name, row["prompt"])
    if not problem and row["chosen"] == row["rejected"]:
        problem = "chosen and rejected are the same"
    return problem or {name: row[name] for name in ("prompt", "chosen", "rejected")}


def _check_prompt(row: Row) -> Row | str:
    row = dict(row)
    if row.get("prompt") is None and row.get("messages") is not None:
        row["prompt"] = row.pop("messages")
    return _missing(row, "prompt") or _bad_prompt(row["prompt"]) or row


def _missing(row: Row, *names: str) -> str | None:
    absent = [name for name in names if row.get(name) is None]
    return f"has no {' and no '.join(absent)}; it has {_columns(row)}" if absent else None


def _bad_prompt(prompt: object) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else "prompt is empty"
    if not isinstance(prompt, list):
        return f"prompt: expected a string or a list of messages, got {_type_name(prompt)}"
    problem = _bad_messages(prompt, "prompt")
    if not problem and prompt[-1]["role"] == "assistant":
        problem = "prompt ends with the assistant's turn; the response comes next"
    if not problem and not prompt[-1]["content"].strip():
        problem = "prompt: the last message is empty"
    return problem


def _bad_completion(completion: object, name: str, prompt: object) -> str | None:
    if isinstance(prompt, str) != isinstance(completion, str):
        return f"{name} is {_type_name(completion)} but prompt is {_type_name(prompt)}: both strings or both messages"
    if isinstance(completion, str):
        return None if completion.strip() else f"{name} is empty"
    return _bad_messages(completion, name, last="assistant")


def _bad_messages(messages: object, name: str, last: str | None = None) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"{name}: expected a list of messages, got {_type_name(messages)}"
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"{name}[{index}]: a message needs role and content, both strings"
        if message.get("role") not in ROLES:
            return f"{name}[{index}]: unknown role {message.get('role')!r}; one of {', '.join(ROLES)}"
    if last is not None and messages[-1]["role"] != last:
        return f"{name} must end with a message of the {last}, not of the {messages[-1]['role']}"
    if last is not None and not messages[-1]["content"].strip():
        return f"{name}: the last message is empty"
    return None


def _columns(row: Row) -> str:
    return ", ".join(sorted(row)) or "no columns"


def _type_name(value: object) -> str:
    names = {str: "a string", list: "a list", dict: "an object", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


# ---------------------------------------------------------------- splitting


def prompt_key(prompt: Prompt) -> str:
    """What makes two prompts the same."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def split_preferences(section: Preferences, rows: Sequence[Row], seed: int) -> PreferenceSplit:
    """Hold out all pairs of a random `heldout` share of the distinct prompts, so that no prompt is on both sides."""
    keys = _shuffled_keys(rows, seed, "preferences")
    if len(keys) < 2:
        raise DataError(
            "data.preferences has one distinct prompt: none can be held out", fix="give pairs for at least two prompts"
        )
    count = min(len(keys) - 1, max(1, round(section.heldout * len(keys))))
    heldout = set(keys[:count])
    return PreferenceSplit(
        train=[row for row in rows if prompt_key(row["prompt"]) not in heldout],
        heldout=[row for row in rows if prompt_key(row["prompt"]) in heldout],
    )


def split_prompts(section: Prompts, rows: Sequence[Row], seed: int) -> PromptSplit:
    """Three ways by distinct prompt: `test` for the comparison, `eval` for choosing, the rest trains PPO.

    Test and eval hold each prompt once; training keeps repeated rows.
    """
    keys = _shuffled_keys(rows, seed, "prompts")
    if section.test + section.eval >= len(keys):
        raise DataError(
            f"data.prompts has {len(keys)} distinct prompts: {section.test} for test and {section.eval} for eval "
            "leave none to train on",
            fix="lower data.prompts.test or data.prompts.eval, or give more prompts",
        )
    test, evaluation = keys[: section.test], keys[section.test : section.test + section.eval]
    first = {prompt_key(row["prompt"]): row for row in reversed(rows)}
    aside = set(test) | set(evaluation)
    return PromptSplit(
        train=[row for row in rows if prompt_key(row["prompt"]) not in aside],
        eval=[first[key] for key in evaluation],
        test=[first[key] for key in test],
    )


def _shuffled_keys(rows: Sequence[Row], seed: int, salt: str) -> list[str]:
    keys = sorted({prompt_key(row["prompt"]) for row in rows})
    random.Random(f"{salt}-{seed}").shuffle(keys)
    return keys
