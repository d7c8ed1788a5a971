"""Guess which columns of a file are prompts, responses, scores and labels, and write the line of a recipe for them.

Uses the names that public data sets use, and the values. A guess is given only if the rows that it was tried on can
then be used. The message about unusable rows uses it, and so does `init`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from rlhfctl.data import columns
from rlhfctl.data.preferences import number
from rlhfctl.data.rows import CHECKS
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import BadRow, Row, examples
from rlhfctl.recipe.schema import Demonstrations, Preferences, Prompts, Source

Options = dict[str, Any]

_TRIED = 50  # rows
_STRONGEST = 10  # labels that say how much better reach 3 or 5
_ENOUGH = 0.8  # share of them that must be usable
_PROMPTS = (
    "prompt", "question", "instruction", "query", "input", "full_text", "context", "history", "post", "user", "title",
)  # fmt: skip
_ANSWERS = ("completion", "response", "answer", "output", "answers", "assistant", "target", "chosen", "summary")
_CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chosen", "turns")
_CHOSEN = ("chosen", "preferred", "accepted", "better", "winner", "win", "good", "positive", "chosen_response")
_REJECTED = (
    "rejected", "dispreferred", "worse", "loser", "lose", "lost", "bad", "negative", "rejected_response",
)  # fmt: skip
_LISTS = ("responses", "answers", "completions", "generations", "candidates", "outputs", "summaries", "replies")
_SCORES = ("scores", "ratings", "rating", "score", "rewards")
_RANKS = ("ranks", "rank", "ranking", "rankings")
_LABELS = (
    "better_response_id", "preferred", "preference", "winner", "labels", "label", "choice", "chosen_id", "better",
    "overall_preference", "preference_strength", "preferred_response", "chosen",
)  # fmt: skip
_PAIRS = (("0", "1"), ("1", "2"), ("a", "b"), ("left", "right"), ("first", "second"))
_FIRST_IS_1 = ("human_ref_a",)  # sets whose label 1 means the first response, and 0 the second
_PLAIN = re.compile(r"[A-Za-z_][\w. -]*[\w]|[A-Za-z_]")
_NOT_TEXT = ("true", "false", "null", "yes", "no", "on", "off")
_SECTIONS: dict[str, type[Source]] = {
    "demonstrations": Demonstrations,
    "preferences": Preferences,
    "pretraining": Demonstrations,
    "prompts": Prompts,
}


def options(name: str, rows: Sequence[Row]) -> Options:
    """Guess the keys of the data set `name` (demonstrations, preferences, prompts) for these rows; {} for none."""
    tried = list(rows[:_TRIED])
    if _usable(name, {}, tried):
        return {}
    return next((made for made in _candidates(name, tried) if _usable(name, made, tried)), {})


def talks(name: str, made: Options, rows: Sequence[Row]) -> bool | None:
    """Tell whether these rows, read with the keys `made`, are conversations; None if none of them can be used."""
    section = _SECTIONS[name](source="guessed", **made)
    for row in rows[:_TRIED]:
        if items := _read(name, row, section):
            return "messages" in items[0] or isinstance(items[0].get("prompt"), list)
    return None


def _read(name: str, row: Row, section: Source) -> list[Row] | None:
    """Return the rows or pairs of a row, read as `section` says; None if it cannot be used."""
    try:
        return examples(CHECKS[name](columns.renamed(row, section.columns), section, Tally()))
    except BadRow:
        return None


def section_line(name: str, section: Source, rows: Sequence[Row]) -> str | None:
    """Write the line of a recipe with guessed keys for a data set whose rows cannot be used; None without a guess."""
    guessed = options(name, rows)
    shown = section.source if re.fullmatch(r"[\w./-]+", section.source) else "..."
    return f"{name}: {flow({'source': shown.rpartition('/')[2] or shown} | guessed)}" if guessed else None


def flow(value: Any) -> str:
    """Write a value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(inner) for inner in value) + "]"
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _NOT_TEXT):
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value)


def _usable(name: str, made: Options, rows: Sequence[Row]) -> bool:
    """Tell whether most rows have the columns that these keys name, and can be used with them."""
    section = _SECTIONS[name](source="guessed", **made)
    usable = 0
    named = [column for names in section.columns.values() for column in columns.names_of(names)]
    for row in rows:
        present = all(columns.value_at(row, column) is not None for column in named)
        usable += present and _read(name, row, section) is not None
    return bool(rows) and usable >= _ENOUGH * len(rows)


def _candidates(name: str, rows: Sequence[Row]) -> Iterator[Options]:
    """List keys to try, the likeliest first."""
    paths = _paths(rows)
    prompts = _prompt_columns(paths)
    if name == "preferences":
        yield from _of_preferences(rows, paths, prompts)
        return
    for path in _named(paths, _CONVERSATIONS):
        if path != "messages" and all(isinstance(columns.value_at(row, path), list) for row in rows):
            yield {"columns": {"messages": path}}
    if name == "prompts":
        yield from ({"columns": {"prompt": path}} for path in prompts)
        return
    for answer in _named(paths, _ANSWERS):
        for prompt in prompts:
            both = {"prompt": prompt, "completion": answer}
            yield {"columns": {key: column for key, column in both.items() if key != column}}


def _prompt_columns(paths: Sequence[str]) -> list[Any]:
    """List candidates for the prompt: instruction and input together (as Alpaca writes them), or one column."""
    candidates: list[Any] = []
    if "instruction" in paths:
        candidates += [["instruction", more] for more in ("input", "context") if more in paths]
    return candidates + _named(paths, _PROMPTS)


def _of_preferences(rows: Sequence[Row], paths: Sequence[str], prompt_columns: Sequence[Any]) -> Iterator[Options]:
    prompts: list[Options] = [{"prompt": path} if path != "prompt" else {} for path in prompt_columns] or [{}]
    prompts += [] if {} in prompts else [{}]
    for chosen, rejected in zip(_CHOSEN, _REJECTED, strict=False):
        both = {"chosen": _named(paths, (chosen,)), "rejected": _named(paths, (rejected,))}
        if both["chosen"] and both["rejected"]:
            mapping = {key: columns_named[0] for key, columns_named in both.items() if key != columns_named[0]}
            yield from ({"columns": prompt | mapping} for prompt in prompts if prompt | mapping)
    for first, second in _siblings(rows, paths):
        for verdict in _label_candidates(rows, paths, first, second):
            for prompt in prompts:
                yield {"columns": prompt | {"responses": [first, second]} | verdict.get("columns", {})} | {
                    key: value for key, value in verdict.items() if key != "columns"
                }
    for path in _named(paths, _LISTS):
        numbers = [{"scores": p} for p in _lists_as_long(rows, path, _SCORES)] + [
            {"ranks": p} for p in _lists_as_long(rows, path, _RANKS)
        ]
        for prompt in prompts:
            yield from ({"columns": prompt | {"responses": path} | more} for more in [*numbers, {}])


def _paths(rows: Sequence[Row]) -> list[str]:
    """List the columns, and the keys of objects in them as a.b."""
    paths: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            paths[key] = None
            if isinstance(value, dict):
                paths |= {f"{key}.{inner}": None for inner in value}
    return list(paths)


def _named(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """List the paths whose last part is one of the names, in the order of the names."""
    return [path for name in names for path in paths if path.lower() == name or path.lower().endswith(f".{name}")]


def _siblings(rows: Sequence[Row], paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Find two columns of texts or conversations whose names differ by 0 and 1, 1 and 2, or a and b."""
    texts = [path for path in paths if all(isinstance(columns.value_at(row, path), str | list) for row in rows)]
    for first, second in combinations(texts, 2):
        if _differ_by_number(first, second):
            yield first, second


def _differ_by_number(one: str, other: str) -> bool:
    """Tell whether two names differ only by 0 and 1, 1 and 2, a and b, or left and right, in one position."""
    one, other = one.lower(), other.lower()
    for first, second in _PAIRS:
        ends = re.finditer(rf"(?<![a-z0-9]){first}(?![a-z0-9])|{first}$" if first.isalpha() else first, one)
        if any(one[: end.start()] + second + one[end.end() :] == other for end in ends):
            return True
    return False


def _label_candidates(
    rows: Sequence[Row], paths: Sequence[str], response_column: str, other_column: str
) -> Iterator[Options]:
    """List columns that may say which of two responses is better: scores, marks in three columns, or a label."""
    scored = [path for path in paths if re.search("score|rating|reward", path.lower())]
    for first, second in combinations(scored, 2):
        numbers = [number(columns.value_at(row, path)) for row in rows for path in (first, second)]
        if None not in numbers and _differ_by_number(first, second):
            yield {"columns": {"scores": [first, second]}}
    marks = [path for path in paths if re.search(r"winner_.*(_a|_b|tie)$", path.lower())]
    if len(marks) in (2, 3):
        yield {"columns": {"label": marks}}
    for path in _named(paths, _LABELS):
        values = [columns.value_at(row, path) for row in rows]
        yield {"columns": {"label": path}} | _meaning(values, response_column)


def _meaning(values: Sequence[Any], response_column: str) -> Options:
    """Guess the meaning of a label's values that are neither 0 and 1 nor the names of the responses."""
    numbers = {parsed for value in values if (parsed := number(value)) is not None and parsed.is_integer()}
    if len(numbers) < len({str(value) for value in values}):
        return {}
    most = int(max((abs(value) for value in numbers), default=0))
    if any(value < 0 for value in numbers) and most <= _STRONGEST:  # how much better the second response is
        sides = {"first": list(range(-most, 0)), "second": list(range(1, most + 1)), "tie": 0}
        return {"label": sides}
    if response_column.lower().endswith(_FIRST_IS_1):
        return {"label": {"first": 1, "second": 0}}
    if 2 in numbers and numbers <= {1, 2}:
        return {"label": {"first": 1, "second": 2}}
    if 2 in numbers and numbers <= {0, 1, 2}:
        return {"label": {"first": 1, "second": 2, "tie": 0}}
    return {}


def _lists_as_long(rows: Sequence[Row], path: str, names: Sequence[str]) -> list[str]:
    """List the columns that hold a list as long as the responses."""
    lists = []
    for name in names:
        pairs = [(columns.value_at(row, path), row.get(name)) for row in rows]
        if all(isinstance(a, list) and isinstance(b, list) and len(a) == len(b) for a, b in pairs):
            lists.append(name)
    return lists
