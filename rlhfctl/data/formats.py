"""The shapes in which people keep preferences and conversations, turned into ours: prompt, chosen, rejected.

    transcripts         "Human: ... Assistant: ..." in one text: a list of messages, where the recipe names the words
    implicit prompts    chosen and rejected begin alike: what they share is the prompt
    ranked lists        K responses, best first (or with scores): a pair for each two that are not tied

One row in, rows out, or a sentence that says what is wrong with it. Checks of the result are data.py's.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhfctl.data.types import Row
from rlhfctl.recipe.schema import Turns

_TRANSCRIPT = re.compile(r"(?:^|\n\n)Assistant:")  # public preference sets write their transcripts so
_TEXTS = ("prompt", "completion", "chosen", "rejected", "text")


# ---------------------------------------------------------------- transcripts


def conversation(text: str, turns: Turns) -> list[Row] | str:
    """The messages of a transcript; a last turn that is only opened is left out. A sentence where it is none."""
    roles = {turns.user: "user", turns.assistant: "assistant"} | ({turns.system: "system"} if turns.system else {})
    words = "|".join(re.escape(word) for word in sorted(roles, key=len, reverse=True))
    parts = re.split(rf"(?:^|(?<=\n))[ \t]*({words})", text)
    if parts[0].strip() or len(parts) == 1:
        return f"begins with no turn: {' or '.join(map(repr, roles))} is expected at the beginning of a line"
    messages = [
        {"role": roles[word], "content": content.strip()}
        for word, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages


def with_conversations(row: Row, turns: Turns) -> Row | str:
    """`row` with its transcripts as messages: whole ones, and responses that stand beside a prompt."""
    row = dict(row)
    prompted = isinstance(row.get("prompt"), str)
    responses = [row["responses"]] if isinstance(row.get("responses"), list) else []
    for name in _TEXTS:
        if not isinstance(row.get(name), str):
            continue
        if name == "prompt" or not prompted:
            messages = conversation(row[name], turns)
            if isinstance(messages, str):
                return f"{name}: {messages}"
            row[name] = messages
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


def with_prompt(row: Row) -> Row | str:
    """`row` with the beginning that chosen and rejected share as its prompt."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        at = _shared_text(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        at = _shared_messages(chosen, rejected)
    else:
        return "chosen and rejected: both strings or both lists of messages"
    if at == 0:
        return "has no prompt, and chosen and rejected begin differently, so none can be told"
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


# ---------------------------------------------------------------- ranked lists, margins, ties


def pairs_of(row: Row, dropped: Counter[str]) -> list[Row] | str:
    """Make the pairs of one row of preferences: of a ranked list all that are not tied.

    Counts ties in `dropped`. A sentence where the row is none of the shapes.
    """
    if str(row.get("tie")).strip().lower() in ("true", "1", "1.0"):  # a table's cell is text
        dropped["ties"] += 1
        return []
    return [row] if row.get("responses") is None else _ranked(row, dropped)


def _ranked(row: Row, dropped: Counter[str]) -> list[Row] | str:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or len(responses) < 2:
        return "responses: expected a list of at least two, best first"
    if scores is None:
        scores = [-place for place in range(len(responses))]
    if not isinstance(scores, list) or len(scores) != len(responses):
        return f"scores: expected {len(responses)} numbers, one a response"
    if not all(isinstance(score, int | float) and not isinstance(score, bool) and score == score for score in scores):
        return "scores: expected numbers, the higher the better"
    rest = {key: value for key, value in row.items() if key not in ("responses", "scores")}
    pairs = []
    for one, other in itertools.combinations(range(len(responses)), 2):
        if scores[one] == scores[other] or responses[one] == responses[other]:
            dropped["ties"] += 1
            continue
        better, worse = (one, other) if scores[one] > scores[other] else (other, one)
        pairs.append(rest | {"chosen": responses[better], "rejected": responses[worse]})
    return pairs
