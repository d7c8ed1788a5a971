"""Read how people rate several responses: scores, ratings, ranks, labels; and the margin of a pair.

    responses, ratings (or scores, ranks)       lists, or objects that hold a text and a number
    responses, label                            which of two responses is better; separate columns for each work too
    score_chosen, score_rejected                a margin

Takes a row and returns a row with `responses` and `scores` (higher is better), from which formats.py makes pairs.
BadRow explains why a row cannot be used. Without any of these columns a list of responses counts as best first, with a
note.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhfctl.data import messages
from rlhfctl.data.columns import names_of
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import BadRow, Row
from rlhfctl.recipe.schema import Compared, Source

_TEXTS = ("answer", "response", "text", "content", "completion", "output", "generation", "summary")
_HIGH, _LOW = ("score", "rating", "overall_score", "overall_rating", "reward"), ("rank", "ranking")
_LISTS = (("scores", 1), ("ratings", 1), ("ranks", -1))
_UNRATED = ("", "n/a", "na", "none", "null")
_FIRST = ("0", "a", "model_a", "response_a", "answer_a", "assistant_a", "first", "left")
_SECOND = ("1", "b", "model_b", "response_b", "answer_b", "assistant_b", "second", "right")


def with_scores(row: Row, section: Source, tally: Tally) -> Row:
    """Return `row` with `responses` and `scores` if it holds several responses; else with a margin at most."""
    row = dict(row)
    responses = row.get("responses")
    if responses is None and isinstance(row.get("answers"), list) and row.get("chosen") is None:
        responses = row.pop("answers")
        tally.read("answers")
    if responses is None:
        return _with_margin(row, tally)
    tally.read("responses")
    if not isinstance(responses, list):
        return row | {"responses": responses}  # formats.py reports what is wrong
    row["responses"] = responses
    for step in (_from_objects, _from_lists, _from_label, _assume_best_first):
        row = step(row, section, tally)
    return _without_unrated(row, tally)


def _from_objects(row: Row, section: Source, tally: Tally) -> Row:
    """Read texts and scores of objects; responses that are messages are read as messages."""
    responses = row["responses"]
    if not responses or not all(isinstance(response, dict) and "role" not in response for response in responses):
        return _from_messages(row, tally)
    texts = [next((response[key] for key in _TEXTS if key in response), None) for response in responses]
    if None in texts:
        raise BadRow(
            f"responses: an object needs one of {', '.join(_TEXTS)}; it has {', '.join(responses[texts.index(None)])}"
        )
    row = row | {"responses": texts}
    scores = [_score_of(response) for response in responses]
    if any(score is not None for score in scores) and all(row.get(name) is None for name, _ in _LISTS):
        row["scores"] = scores
    return row


def _from_messages(row: Row, tally: Tally) -> Row:
    """Read responses that are messages, or lists of them, as messages; texts stay."""
    read: list[Any] = []
    for index, response in enumerate(row["responses"]):
        turns = [response] if isinstance(response, dict) else response
        if isinstance(turns, list):
            turns = messages.read_messages(turns, f"responses[{index}]", tally)
        read.append(turns)
    return row | {"responses": read}


def _from_lists(row: Row, section: Source, tally: Tally) -> Row:
    """Read numbers from a list beside the responses; ranks with the sign changed."""
    for name, sign in _LISTS:
        value = row.get(name)
        if value is None and name in section.columns:
            raise BadRow(f"{name}: there is none in this row")
        if value is None:
            continue
        tally.read(name)
        if not isinstance(value, list) or len(value) != len(row["responses"]):
            raise BadRow(f"{name}: expected {len(row['responses'])} numbers, one a response")
        numbers = [None if _is_unrated(item) else number(item) for item in value]
        if any(converted is None and not _is_unrated(item) for converted, item in zip(numbers, value, strict=True)):
            raise BadRow(f"{name}: expected numbers, the {'higher' if sign > 0 else 'lower'} the better")
        if name != "scores":
            tally.made[f"rows are ranked by their {name}, the {'higher' if sign > 0 else 'lower'} the better"] += 1
        return row | {"scores": [None if value is None else sign * value for value in numbers]}
    return row


def _from_label(row: Row, section: Source, tally: Tally) -> Row:
    """Make scores of the responses from the label that says which is better; equal scores for a tie."""
    if row.get("scores") is not None or ("label" not in section.columns and row.get("label") is None):
        return row
    tally.read("label")
    label, count = row.get("label"), len(row["responses"])
    if isinstance(label, list):
        best = _marked(label, count)
    else:
        best = _named(label, count, section)
    if best is None:
        raise BadRow(
            f"label: {label!r} names no response; say what it means: label: {{first: ..., second: ..., tie: ...}} "
            "beside columns"
        )
    if best < count and not isinstance(label, list):
        tally.made[f"labels are {_as_text(label)}: response {best + 1} of {count} is better"] += 1
    return row | {"scores": [float(index == best) for index in range(count)]}


def _marked(marks: Sequence[Any], count: int) -> int | None:
    """Return the index of the response that columns of 0 and 1 mark; one past the last is a tie."""
    marked = [index for index, mark in enumerate(marks) if _as_text(mark) in ("1", "true", "yes")]
    return None if len(marked) != 1 or count > len(marks) else min(marked[0], count)


def _named(label: Any, count: int, section: Source) -> int | None:
    """Return the index of the response that the label names; `count` for a tie, None for neither."""
    word = _as_text(label)
    meanings = section.label if isinstance(section, Compared) else None
    if meanings:
        sides = {_as_text(value): side for side, values in meanings.items() for value in _values(values)}
        return {"first": 0, "second": 1, "tie": count}.get(sides.get(word, ""))
    names = names_of(section.columns.get("responses", []))
    if count == len(names) and word in [name.lower() for name in names]:
        return [name.lower() for name in names].index(word)
    if word in _FIRST or word in _SECOND:
        return int(word in _SECOND)
    if word.startswith("tie"):
        return count
    return int(word) if word.isdecimal() and int(word) < count else None


def _values(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _as_text(value: Any) -> str:
    """Convert a label to text: a cell's "1.0" is 1, and true is 1."""
    parsed = number(value)
    if isinstance(value, bool) or (parsed is not None and parsed.is_integer()):
        return str(int(value if isinstance(value, bool) or parsed is None else parsed))
    return str(value).strip().lower()


def _assume_best_first(row: Row, section: Source, tally: Tally) -> Row:
    """Note that nothing says which response is better, and that they are read as best first."""
    if row.get("scores") is not None:
        return row
    tally.made["rows of responses are read as best first: no scores, ratings, ranks or label stand beside them"] += 1
    count = len(row["responses"])
    for name, value in row.items():
        numbers = isinstance(value, list) and len(value) == count and all(number(one) is not None for one in value)
        if numbers and name != "responses":
            tally.made[f"rows hold a number for each response in {name}: columns: {{scores: {name}}} ranks by it"] += 1
    return row


def _without_unrated(row: Row, tally: Tally) -> Row:
    scores = row.get("scores")
    if scores is None or None not in scores:
        return row
    rated = [index for index, score in enumerate(scores) if score is not None]
    if len(rated) < 2:
        raise BadRow("fewer than two of its responses have a score")
    tally.dropped["responses without a score"] += len(scores) - len(rated)
    return row | {name: [row[name][index] for index in rated] for name in ("responses", "scores")}


def _score_of(response: Mapping[str, Any]) -> float | None:
    """Return the score of an object (higher is better): its own, or its rank with the sign changed."""
    for names, sign in ((_HIGH, 1), (_LOW, -1)):
        for name in names:
            parsed = number(response.get(name))
            if parsed is not None:
                return sign * parsed
    return None


def _is_unrated(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _UNRATED)


def number(value: Any) -> float | None:
    """Convert a value to a number, also from text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def _with_margin(row: Row, tally: Tally) -> Row:
    """Return `row` with the difference of its two scores as the margin; 0 if the chosen response is scored lower."""
    chosen, rejected = number(row.get("score_chosen")), number(row.get("score_rejected"))
    if row.get("margin") is not None or chosen is None or rejected is None:
        return row
    tally.read("score_chosen", "score_rejected")
    tally.made["margins are score_chosen - score_rejected (columns: {unread: score_chosen} leaves them out)"] += 1
    if chosen < rejected:
        tally.made["pairs whose chosen response is scored lower: their margin is 0"] += 1
    return row | {"margin": max(0.0, chosen - rejected)}
