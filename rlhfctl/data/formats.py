"""Convert the common formats of preferences and conversations to prompts with responses.

    transcripts         "Human: ... Assistant: ..." in one text: a list of messages, if the recipe names the words
    implicit prompts    chosen and rejected begin alike: their common beginning is the prompt
    ranked lists        K responses, best first (or with scores): a pair for each two that are not tied

Takes a row and returns a row or its pairs; BadRow explains why a row cannot be used. rows.py checks each pair by
itself, like a pair of a file; `grouped` then combines the pairs of a list to a PreferenceGroup.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhfctl.data.types import BadRow, Comparison, PreferenceGroup, Prompt, Row
from rlhfctl.recipe.schema import Turns

_TRANSCRIPT = re.compile(r"(?:^|\n\n)Assistant:")  # how public preference sets write transcripts
_TEXTS = ("prompt", "completion", "chosen", "rejected", "text")


# ---------------------------------------------------------------- transcripts


def conversation(text: str, turns: Turns) -> list[Row]:
    """Split a transcript into messages, without a last turn that is only opened; BadRow if it is no transcript."""
    roles = {turns.user: "user", turns.assistant: "assistant"} | ({turns.system: "system"} if turns.system else {})
    words = "|".join(re.escape(word) for word in sorted(roles, key=len, reverse=True))
    parts = re.split(rf"(?:^|(?<=\n))[ \t]*({words})", text)
    if parts[0].strip() or len(parts) == 1:
        raise BadRow(f"begins with no turn: {' or '.join(map(repr, roles))} is expected at the beginning of a line")
    messages = [
        {"role": roles[word], "content": content.strip()}
        for word, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages


def with_conversations(row: Row, turns: Turns) -> Row:
    """Return `row` with its transcripts as messages: whole transcripts, and responses beside a prompt."""
    row = dict(row)
    prompted = isinstance(row.get("prompt"), str)
    responses = [row["responses"]] if isinstance(row.get("responses"), list) else []
    for name in _TEXTS:
        if not isinstance(row.get(name), str):
            continue
        if name == "prompt" or not prompted:
            try:
                row[name] = conversation(row[name], turns)
            except BadRow as error:
                raise BadRow(f"{name}: {error}") from error
        else:
            row[name] = _answer(row[name])
    if responses and prompted:
        row["responses"] = [_answer(text) if isinstance(text, str) else text for text in row["responses"]]
    if "text" in row and isinstance(row["text"], list):
        row["messages"] = row.pop("text")
    return row


def _answer(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text.strip()}]


# ---------------------------------------------------------------- implicit prompts


def with_prompt(row: Row) -> Row:
    """Return `row` with the common beginning of chosen and rejected as its prompt."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        length = _shared_text(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        length = _shared_messages(chosen, rejected)
    else:
        raise BadRow("chosen and rejected: both strings or both lists of messages")
    if length == 0:
        raise BadRow("has no prompt, and chosen and rejected begin differently, so none can be told")
    return row | {"prompt": chosen[:length], "chosen": chosen[length:], "rejected": rejected[length:]}


def _shared_text(chosen: str, rejected: str) -> int:
    """Find where the responses begin: after the last common "Assistant:", else at the last whole common word."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = "".join(char for char, _ in alike)
    marks = [match.end() for match in _TRANSCRIPT.finditer(shared)]
    if marks:
        return marks[-1]
    if len(shared) in (len(chosen), len(rejected)):  # one begins the other: the last word belongs to it
        shared = shared.rstrip()
    words = list(re.finditer(r"\s+", shared))
    return words[-1].start() if words else 0


def _shared_messages(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    at = sum(1 for _ in pairs)
    return min(at, len(chosen) - 1, len(rejected) - 1)


# ---------------------------------------------------------------- ranked lists, ties


def comparisons_of(row: Row, dropped: Counter[str]) -> list[tuple[Comparison, Row]]:
    """Make the pairs of one row of preferences, with the indices of their responses; a ranked list gives all but ties.

    Counts ties in `dropped`. BadRow if the row has none of the formats.
    """
    if str(row.get("tie")).strip().lower() in ("true", "1", "1.0"):  # a cell of a CSV table is text
        dropped["ties"] += 1
        return []
    return [((0, 1), row)] if row.get("responses") is None else _ranked(row, dropped)


def _ranked(row: Row, dropped: Counter[str]) -> list[tuple[Comparison, Row]]:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or len(responses) < 2:
        raise BadRow("responses: expected a list of at least two, best first")
    if scores is None:
        scores = [-index for index in range(len(responses))]
    if not isinstance(scores, list) or len(scores) != len(responses):
        raise BadRow(f"scores: expected {len(responses)} numbers, one a response")
    if not all(isinstance(score, int | float) and not isinstance(score, bool) and score == score for score in scores):
        raise BadRow("scores: expected numbers, the higher the better")
    rest = {key: value for key, value in row.items() if key not in ("responses", "scores")}
    pairs: list[tuple[Comparison, Row]] = []
    for first, second in itertools.combinations(range(len(responses)), 2):
        if scores[first] == scores[second] or responses[first] == responses[second]:
            dropped["ties"] += 1
            continue
        better, worse = (first, second) if scores[first] > scores[second] else (second, first)
        pairs.append(((better, worse), rest | {"chosen": responses[better], "rejected": responses[worse]}))
    return pairs


def _ranks(row: Row) -> list[int]:
    """Return the ranks of a row's responses: 0 is the best, equal scores have equal ranks."""
    if row.get("responses") is None:
        return [0, 1]  # chosen and rejected
    scores = row.get("scores")
    return list(range(len(row["responses"]))) if scores is None else _ranks_of_values([-score for score in scores])


def _ranks_of_values(values: Sequence[float]) -> list[int]:
    """Return the rank of each value among the distinct values, the lowest first."""
    rank = {value: index for index, value in enumerate(sorted(set(values)))}
    return [rank[value] for value in values]


def grouped(row: Row, checked: Sequence[tuple[Comparison, Row]]) -> list[PreferenceGroup]:
    """Combine the checked pairs of `row` in order, to one group if all have the same prompt.

    They differ in prompt if it is the common beginning of chosen and rejected: two responses may share more than two
    others. Then each run of pairs that agree is a group. A response that is in no pair is in no group.
    """
    runs: list[_Run] = []
    for comparison, pair in checked:
        if not runs or not runs[-1].takes(comparison, pair):
            runs.append(_Run(pair))
        runs[-1].add(comparison, pair)
    return [run.group(_ranks(row)) for run in runs]


class _Run:
    """A run of pairs that have one prompt, in which a response always has the same text."""

    def __init__(self, first: Row) -> None:
        self.shared = _shared_keys(first)
        self.responses: dict[int, Prompt] = {}  # by index in the list
        self.comparisons: list[Comparison] = []

    def takes(self, comparison: Comparison, pair: Row) -> bool:
        same = all(self.responses.get(index, text) == text for index, text in _sides(comparison, pair))
        return same and self.shared == _shared_keys(pair)

    def add(self, comparison: Comparison, pair: Row) -> None:
        self.responses = dict(_sides(comparison, pair)) | self.responses
        self.comparisons.append(comparison)

    def group(self, ranks: Sequence[int]) -> PreferenceGroup:
        listed = sorted(self.responses)
        new_index = {position: index for index, position in enumerate(listed)}
        return PreferenceGroup(
            responses=tuple(self.responses[position] for position in listed),
            ranks=tuple(_ranks_of_values([ranks[position] for position in listed])),
            comparisons=tuple((new_index[better], new_index[worse]) for better, worse in self.comparisons),
            **self.shared,
        )


def _sides(comparison: Comparison, pair: Row) -> Iterable[tuple[int, Prompt]]:
    return zip(comparison, (pair["chosen"], pair["rejected"]), strict=True)


def _shared_keys(pair: Row) -> Row:
    return {name: pair.get(name) for name in ("prompt", "margin", "tools")}
