"""Rows: read from wherever they lie or the built-in task, checked one by one, sifted, split by prompt.

Reads the recipe's `data` section; gives plain lists of rows with a fingerprint. No model, no tokenizer, no torch: all
rows of a run are checked before anything heavy loads. Reading files is sources.py's, odd shapes of rows are
shapes.py's, turning rows into ids is encoding.py's.

A *prompt* is a string or a list of messages ({"role", "content"}); a *completion* likewise. Shapes are TRL's:
prompt+completion, messages, or text for demonstrations; prompt+chosen+rejected (and a margin) for preferences; prompt
alone, messages that end with the user's turn, or chosen+rejected that begin alike for prompts. Other columns of prompts
are kept for reward functions.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import DataError, Problem, RecipeError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import Data, Demonstrations, Ppo, Preferences, Prompts, Source, looks_like_id
from rlhfctl.training import columns, shapes, sources
from rlhfctl.training.leaks import without_leaks
from rlhfctl.training.sources import type_name as _type_name

ROLES = ("system", "user", "assistant", "tool", "developer")

Row = dict[str, Any]
Prompt = str | list[dict[str, Any]]
Check = Callable[[Row, Source, "Counter[str]", "Counter[str]"], list[Row] | str]  # the rows to use, or what is wrong


@dataclass(frozen=True)
class Rows:
    """Checked rows and the fingerprint of where they came from."""

    name: str
    rows: list[Row]
    fingerprint: str
    notes: tuple[str, ...] = ()  # sentences about what was dropped or made
    split: PreferenceSplit | PromptSplit | None = None  # holds the very objects that `rows` holds
    locations: tuple[str, ...] = ()  # "file:line" of each row, in the order of `rows`

    @cached_property
    def _location_by_identity(self) -> dict[int, str]:
        return {id(row): location for row, location in zip(self.rows, self.locations, strict=True)}

    def location_of(self, row: Row) -> str:
        """Say where one of `rows` (or of the split's rows) came from, as "file:line"."""
        return self._location_by_identity[id(row)]

    def only(self, keep: Callable[[Row], bool], **changes: Any) -> Rows:
        """Return the rows for which `keep` holds, with their locations; `changes` replace other fields."""
        kept = [(row, place) for row, place in zip(self.rows, self.locations, strict=True) if keep(row)]
        return replace(self, rows=[row for row, _ in kept], locations=tuple(place for _, place in kept), **changes)


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
    return _load("demonstrations", section, seed, _demonstrations)


def load_preferences(section: Preferences, seed: int) -> Rows:
    """Rows with prompt, chosen, rejected, and a margin where the source has one."""
    return _load("preferences", section, seed, _preferences)


def load_prompts(section: Prompts, seed: int) -> Rows:
    """Rows with prompt, and whatever other columns the file has."""
    return _load("prompts", section, seed, _prompts)


NAMES = ("demonstrations", "preferences", "prompts")


def check_all(data: Data, seed: int, names: Collection[str] = NAMES) -> dict[str, Rows]:
    """Load, check and split the recipe's data sets (of those in `names`). DataError for the first with bad rows.

    `seed` is the recipe's data_seed. With data.leaks: drop, rows that answer a test prompt are left out.
    """
    loaded: dict[str, Rows] = {}
    test: list[Row] = []
    if data.prompts is not None and ("prompts" in names or data.leaks == "drop"):
        prompts = load_prompts(data.prompts, seed)
        split = split_prompts(data.prompts, prompts.rows, seed)
        test = split.test if data.leaks == "drop" else []
        loaded["prompts"] = replace(prompts, split=split)
    if data.demonstrations is not None and "demonstrations" in names:
        loaded["demonstrations"] = without_leaks(load_demonstrations(data.demonstrations, seed), test)
    if data.preferences is not None and "preferences" in names:
        pairs = without_leaks(load_preferences(data.preferences, seed), test)
        loaded["preferences"] = replace(pairs, split=split_preferences(data.preferences, pairs.rows, seed))
    return {name: loaded[name] for name in NAMES if name in loaded and name in names}


def _load(name: str, section: Source, seed: int, check: Check) -> Rows:
    """Read, rename, reshape, check, sift; whatever is left out is counted and said in the notes."""
    if section.builtin:
        with Work(f"making {name}"):
            rows = _generate(name, section, seed)
            fingerprint = fs.hash_json(rows)
        places = [f"{section.source} row {index + 1}" for index in range(len(rows))]
    else:
        try:
            rows, places, fingerprint = sources.read(
                section, {"demonstrations": "text", "prompts": "prompt"}.get(name, "pair")
            )
        except DataError as error:
            if error.where == section.source and looks_like_id(section.source):  # no path: only the recipe has it
                error.what, error.where = f"{section.source}: {error.what}", f"data.{name}.source"
            raise
    _require_columns(name, section, rows)
    dropped: Counter[str] = Counter()
    usable: list[tuple[Row, str]] = []
    bad: list[str] = []
    made_of: Counter[str] = Counter()
    labels: dict[str, str | int] | None = None
    if isinstance(section, Preferences) and section.label is not None:
        labels = {str(side): value for side, value in section.label.items()}
    for row, place in Work(f"checking {name}", len(rows)).through(zip(rows, places, strict=True)):
        ours = columns.normalised(_rename(row, section.columns), labels, made_of)
        found = check(ours, section, dropped, made_of) if isinstance(ours, dict) else ours
        if isinstance(found, str):
            bad.append(f"{place}: {found}")
        else:
            usable += [(one, place) for one in found]
    if bad and (section.bad_rows == "stop" or not usable):
        more = len(bad) - sources.SHOWN_BAD_ROWS
        shown = [*bad[: sources.SHOWN_BAD_ROWS], *([f"and {more} more"] if more > 0 else [])]
        guessed = columns.guess(rows[0]) if isinstance(section, Preferences) else None
        mapped = (
            f"say which columns hold the responses and the label: `{guessed}`"
            if guessed
            else ("map the columns with `columns: {ours: theirs}`")
        )
        raise DataError(
            f"{len(bad)} of {len(rows)} rows of data.{name} cannot be used:\n    " + "\n    ".join(shown),
            fix=f"correct or remove these rows, {mapped}, or leave them out: data.{name}.bad_rows: drop",
        )
    made = len(usable)
    kept = _sifted(usable, section, dropped)
    if not kept:
        why = f" after {_listed(dropped)} were dropped" if dropped else ""
        raise DataError(f"data.{name} holds no rows{why}", where=section.source, fix="name a source with usable rows")
    notes = [f"{made} pairs of {len(rows)} rows"] if made > len(rows) else []
    notes += [f"{count} {what}" for what, count in sorted(made_of.items())]
    notes += _unused(name, section, rows)
    if bad:
        notes.append(f"{len(bad)} of {len(rows)} rows cannot be used and are dropped, the first: {bad[0]}")
    if dropped:
        notes.append(f"dropped: {_listed(dropped)}")
    if section.limit is not None and len(kept) > section.limit:
        notes.append(f"the first {section.limit} of {len(kept)} are used")
        kept = kept[: section.limit]
    return Rows(name, [row for row, _ in kept], fingerprint, tuple(notes), locations=tuple(place for _, place in kept))


def _unused(name: str, section: Source, rows: Sequence[Row]) -> list[str]:
    """A sentence that names the columns which nothing reads. Reward functions get those of prompts."""
    if name == "prompts" or section.builtin:
        return []
    mapped = {one.partition(".")[0] for one in _mapped(section)} | set(_mapped(section))
    unused = sorted({key for row in rows for key in row if key} - columns.READ - mapped)
    return [f"not used: the columns {', '.join(unused)}"] if unused else []


def _mapped(section: Source) -> list[str]:
    """The file's columns that `columns` names."""
    return [one for theirs in section.columns.values() for one in ([theirs] if isinstance(theirs, str) else theirs)]


def _require_columns(name: str, section: Source, rows: Sequence[Row]) -> None:
    for ours, theirs in ((key, one) for key, names in section.columns.items() for one in _theirs(names)):
        if not any(columns.value_at(row, theirs) is not None or theirs in row for row in rows):
            have = sorted({key for row in rows for key in row})
            raise DataError(
                f"no row has the column {theirs!r} that data.{name}.columns.{ours} names",
                where=section.source,
                fix=f"the file's columns are: {', '.join(have) or 'none'}",
            )


def _sifted(located: Sequence[tuple[Row, str]], section: Source, dropped: Counter[str]) -> list[tuple[Row, str]]:
    """Leave out repeated and long rows, where the recipe says so; each row stands beside its location."""
    kept: list[tuple[Row, str]] = []
    seen: set[str] = set()
    for row, place in located:
        if section.max_chars is not None and characters(row) > section.max_chars:
            dropped[f"longer than {section.max_chars} characters"] += 1
            continue
        if section.deduplicate:
            key = json.dumps(row, sort_keys=True, default=str)
            if key in seen:
                dropped["duplicates"] += 1
                continue
            seen.add(key)
        kept.append((row, place))
    return kept


def characters(row: Row) -> int:
    """Of the row's longest text: the prompt with one response."""

    def length(value: Any) -> int:
        return len(value) if isinstance(value, str) else sum(len(message["content"]) for message in value or [])

    answers = [length(row.get(name)) for name in ("completion", "chosen", "rejected")]
    return length(row.get("prompt")) + length(row.get("messages")) + length(row.get("text")) + max(answers)


def _listed(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(dropped.items()))


def _generate(name: str, section: Source, seed: int) -> list[Row]:
    from rlhfctl.world import reviews

    count = section.rows
    assert count is not None  # the schema requires it for a built-in source
    if isinstance(section, Preferences):
        return [dict(row) for row in reviews.preferences(count, seed, section.label_noise)]
    make = reviews.demonstrations if name == "demonstrations" else reviews.prompts
    return [dict(row) for row in make(count, seed)]


def _rename(row: Row, mapping: Mapping[str, str | list[str]]) -> Row:
    """`row` with its columns under our names; a list of names makes a list of their values."""
    if not mapping:
        return row
    theirs = {one for names in mapping.values() for one in _theirs(names)}
    renamed = {key: value for key, value in row.items() if key not in theirs and key not in mapping}
    for ours, names in mapping.items():
        values = [columns.value_at(row, one) for one in _theirs(names)]
        if isinstance(names, list):
            renamed[ours] = values
        elif values[0] is not None or names in row:
            renamed[ours] = values[0]
    return renamed


def _theirs(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


# ---------------------------------------------------------------- checking: the row to use, or what is wrong with it


def _demonstrations(row: Row, section: Source, dropped: Counter[str], made: Counter[str]) -> list[Row] | str:
    return _one(row, section, lambda shaped: _check_demonstration(columns.with_system(shaped, made)))


def _preferences(row: Row, section: Source, dropped: Counter[str], made: Counter[str]) -> list[Row] | str:
    shaped = shapes.with_conversations(row, section.turns) if section.turns is not None else row
    pairs = shapes.pairs_of(shaped, dropped) if isinstance(shaped, dict) else shaped
    if isinstance(pairs, str):
        return pairs
    checked = [_check_preference(columns.with_system(pair, made)) for pair in pairs]
    problem = next((one for one in checked if isinstance(one, str)), None)
    return problem or [pair for pair in checked if isinstance(pair, dict)]


def _prompts(row: Row, section: Source, dropped: Counter[str], made: Counter[str]) -> list[Row] | str:
    return _one(row, section, lambda shaped: _check_prompt(shaped, made))


def _one(row: Row, section: Source, check: Callable[[Row], Row | str]) -> list[Row] | str:
    shaped = shapes.with_conversations(row, section.turns) if section.turns is not None else row
    checked = check(shaped) if isinstance(shaped, dict) else shaped
    return checked if isinstance(checked, str) else [checked]


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
    margin = _number(row.get("margin"))
    if not problem and margin is not None:
        number = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin)
        problem = None if number else f"margin: expected a number, got {margin!r}"
    row = row if margin is None else row | {"margin": margin}
    names = ("prompt", "chosen", "rejected") if margin is None else ("prompt", "chosen", "rejected", "margin")
    return problem or {name: row[name] for name in names}


def _number(value: object) -> object:
    """A number that is written as text, as in the cells of a table; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_prompt(row: Row, made: Counter[str]) -> Row | str:
    row = dict(row)
    if row.get("prompt") is None and row.get("messages") is not None:
        row["prompt"] = row.pop("messages")
    if row.get("prompt") is not None:
        row["prompt"] = columns.without_answer(row["prompt"], made)
    elif row.get("chosen") is not None and row.get("rejected") is not None:
        prompted = shapes.with_prompt(row)  # a row of preferences, from which only its question is wanted
        if isinstance(prompted, str):
            return prompted
        row = prompted
    if row.get("prompt") is not None:
        row = columns.with_system(row, made)
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
    named = sorted(name for name, value in row.items() if value is not None)
    return ", ".join([*named, *(f"{name} (null)" for name in sorted(row.keys() - named))]) or "no columns"


# ---------------------------------------------------------------- splitting


def prompt_key(prompt: Prompt) -> str:
    """What makes two prompts the same."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def split_preferences(section: Preferences, rows: Sequence[Row], seed: int) -> PreferenceSplit:
    """Hold out all pairs of a random `heldout` share of the distinct prompts, so that no prompt is on both sides."""
    keys = _shuffled_keys(rows, seed, "preferences")
    if len(keys) < 2:
        raise DataError(
            "one distinct prompt: none can be held out",
            where="data.preferences",
            fix="give pairs for at least two prompts",
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
            f"{len(keys)} distinct prompts: {section.test} for test and {section.eval} for eval leave none to train on",
            where="data.prompts",
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


def require_a_batch(prompts: int, section: Ppo) -> None:
    """RecipeError where so many training prompts do not fill a batch of PPO."""
    if prompts * section.num_generations < section.batch_size:
        left = "prompt" if prompts == 1 else "prompts"
        what = f"{prompts} {left} left to train on: too few to fill one batch of {section.batch_size}"
        raise RecipeError([Problem("ppo.per_device_train_batch_size", what, fix="lower it, or give more prompts")])


def _shuffled_keys(rows: Sequence[Row], seed: int, salt: str) -> list[str]:
    keys = sorted({prompt_key(row["prompt"]) for row in rows})
    random.Random(f"{salt}-{seed}").shuffle(keys)
    return keys
