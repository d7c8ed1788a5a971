"""Read the shapes in which people keep preferences and conversations.

    transcripts         "Human: ... Assistant: ..." in one text: a list of messages, where the recipe names the words
    implicit prompts    chosen and rejected begin alike: what they share is the prompt
    ranked lists        K responses, best first (or with scores): a pair for each two that are not tied

One row in, a row or its pairs out; BadRow says what is wrong with one. Each pair is checked by itself in
rows.py, as a file's own pair is; then `grouped` puts the pairs of a list together again as a PreferenceGroup.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhfctl.data.types import BadRow, Comparison, PreferenceGroup, Prompt, Row
from rlhfctl.recipe.schema import Turns

_TRANSCRIPT = re.compile(r"(?:^|\n\n)Assistant:")  # public preference sets write their transcripts so
_TEXTS = ("prompt", "completion", "chosen", "rejected", "text")


# ---------------------------------------------------------------- transcripts


def conversation(text: str, turns: Turns) -> list[Row]:
    """Read the messages of a transcript; a last turn that is only opened is left out. BadRow where it is none."""
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
    """`row` with its transcripts as messages: whole ones, and responses that stand beside a prompt."""
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
    """`row` with the beginning that chosen and rejected share as its prompt."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        at = _shared_text(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        at = _shared_messages(chosen, rejected)
    else:
        raise BadRow("chosen and rejected: both strings or both lists of messages")
    if at == 0:
        raise BadRow("has no prompt, and chosen and rejected begin differently, so none can be told")
    return row | {"prompt": chosen[:at], "chosen": chosen[at:], "rejected": rejected[at:]}


def _shared_text(chosen: str, rejected: str) -> int:
    """Where the responses begin: after the last "Assistant:" of what both share, else at the last whole word of it."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = "".join(char for char, _ in alike)
    marks = [match.end() for match in _TRANSCRIPT.finditer(shared)]
    if marks:
        return marks[-1]
    if len(shared) in (len(chosen), len(rejected)):  # one is the beginning of the other: the last word is its own
        shared = shared.rstrip()
    words = list(re.finditer(r"\s+", shared))
    return words[-1].start() if words else 0


def _shared_messages(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    at = sum(1 for _ in pairs)
    return min(at, len(chosen) - 1, len(rejected) - 1)


# ---------------------------------------------------------------- ranked lists, ties


def comparisons_of(row: Row, dropped: Counter[str]) -> list[tuple[Comparison, Row]]:
    """Make the pairs of one row of preferences: of a ranked list all that are not tied, with their places in the list.

    Counts ties in `dropped`. BadRow where the row is none of the shapes.
    """
    if str(row.get("tie")).strip().lower() in ("true", "1", "1.0"):  # a table's cell is text
        dropped["ties"] += 1
        return []
    return [((0, 1), row)] if row.get("responses") is None else _ranked(row, dropped)


def _ranked(row: Row, dropped: Counter[str]) -> list[tuple[Comparison, Row]]:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or len(responses) < 2:
        raise BadRow("responses: expected a list of at least two, best first")
    if scores is None:
        scores = [-place for place in range(len(responses))]
    if not isinstance(scores, list) or len(scores) != len(responses):
        raise BadRow(f"scores: expected {len(responses)} numbers, one a response")
    if not all(isinstance(score, int | float) and not isinstance(score, bool) and score == score for score in scores):
        raise BadRow("scores: expected numbers, the higher the better")
    rest = {key: value for key, value in row.items() if key not in ("responses", "scores")}
    found: list[tuple[Comparison, Row]] = []
    for one, other in itertools.combinations(range(len(responses)), 2):
        if scores[one] == scores[other] or responses[one] == responses[other]:
            dropped["ties"] += 1
            continue
        better, worse = (one, other) if scores[one] > scores[other] else (other, one)
        found.append(((better, worse), rest | {"chosen": responses[better], "rejected": responses[worse]}))
    return found


def _ranks(row: Row) -> list[int]:
    """The ranks of a row's responses: 0 is the best, equal scores have equal ranks."""
    if row.get("responses") is None:
        return [0, 1]  # chosen and rejected
    scores = row.get("scores")
    return list(range(len(row["responses"]))) if scores is None else _places([-score for score in scores])


def _places(values: Sequence[float]) -> list[int]:
    """The place of each value among the distinct ones, the lowest first."""
    place = {value: index for index, value in enumerate(sorted(set(values)))}
    return [place[value] for value in values]


def grouped(row: Row, checked: Sequence[tuple[Comparison, Row]]) -> list[PreferenceGroup]:
    """Put the checked pairs of `row` together again, in their order: as one group, where all have one prompt.

    They have not where the prompt is what chosen and rejected share: two responses may share more than two others.
    Then each run of pairs that agree is a group. A response that is in no pair is in no group.
    """
    runs: list[_Run] = []
    for comparison, pair in checked:
        if not runs or not runs[-1].takes(comparison, pair):
            runs.append(_Run(pair))
        runs[-1].add(comparison, pair)
    return [run.group(_ranks(row)) for run in runs]


class _Run:
    """Pairs that follow each other with one prompt, and in which a response always reads the same."""

    def __init__(self, first: Row) -> None:
        self.shared = _shared_keys(first)
        self.responses: dict[int, Prompt] = {}  # by its place in the list
        self.comparisons: list[Comparison] = []

    def takes(self, comparison: Comparison, pair: Row) -> bool:
        same = all(self.responses.get(index, text) == text for index, text in _sides(comparison, pair))
        return same and self.shared == _shared_keys(pair)

    def add(self, comparison: Comparison, pair: Row) -> None:
        self.responses = dict(_sides(comparison, pair)) | self.responses
        self.comparisons.append(comparison)

    def group(self, ranks: Sequence[int]) -> PreferenceGroup:
        listed = sorted(self.responses)
        index = {place: number for number, place in enumerate(listed)}
        return PreferenceGroup(
            responses=tuple(self.responses[place] for place in listed),
            ranks=tuple(_places([ranks[place] for place in listed])),
            comparisons=tuple((index[better], index[worse]) for better, worse in self.comparisons),
            **self.shared,
        )


def _sides(comparison: Comparison, pair: Row) -> Iterable[tuple[int, Prompt]]:
    return zip(comparison, (pair["chosen"], pair["rejected"]), strict=True)


def _shared_keys(pair: Row) -> Row:
    return {name: pair.get(name) for name in ("prompt", "margin", "tools")}
