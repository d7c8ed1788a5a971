"""The columns in which people keep their rows, turned into ours before a row is checked.

    conversations       ShareGPT's from/value turns, content in parts, null content beside tool calls
    system              a system turn, or the beginning of a text prompt
    prompt beside whole conversations   the text repeats their first turn: the prompt is taken from them
    prompts that end with an answer     the answer is left out
    two responses and a label           responses, best first
    lists of answers with ranks         responses with scores
    score_chosen, score_rejected        a margin

One row in, a row out, or a sentence that says what is wrong with it. What is done is counted, so that data.py can say
it once for a whole file. Which rows are whole is checked by data.py, pairs are made by shapes.py.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "system": "system", "tool": "tool", "function": "tool", "observation": "tool", "developer": "developer",
}  # fmt: skip
"""Who speaks, as other formats write it -> our role."""

READ = frozenset((
    "prompt", "completion", "messages", "text", "chosen", "rejected", "margin", "tie", "responses", "scores", "ratings",
    "ranks", "label", "system", "system_prompt", "conversations", "conversation", "answers", "score_chosen",
    "score_rejected", "", "Unnamed: 0",
))  # fmt: skip
"""Columns that some shape of a row uses; others are named once as not used."""

_INDEX = ("", "Unnamed: 0")
_TURNS = ("conversations", "conversation")
_SYSTEM = ("system", "system_prompt")
_MESSAGE_LISTS = ("messages", "prompt", "completion", "chosen", "rejected")
_ANSWER_TEXTS = ("answer", "response", "text", "content", "completion")
_BETTER_HIGH, _BETTER_LOW = ("score", "rating", "overall_score"), ("rank",)
_FIRST, _SECOND = (
    ("0", "a", "model_a", "response_a", "first", "left"),
    ("1", "b", "model_b", "response_b", "second", "right"),
)
_LABELS = ("better_response_id", "preferred", "preference", "winner", "labels", "label", "chosen_id")


def normalised(row: Row, labels: Mapping[str, str | int] | None, made: Counter[str]) -> Row | str:
    """`row` in our columns; what was done is counted in `made`. A sentence where it cannot be read."""
    row = dict(row)
    for name in _INDEX:
        if name in row:
            row.pop(name)
            made["values of a column without a name (an index that pandas wrote) are left out"] += 1
    for name in _TURNS:
        if isinstance(row.get(name), list) and row.get("messages") is None:
            row["messages"] = row.pop(name)
    for name in _MESSAGE_LISTS:
        if isinstance(row.get(name), list):
            messages = _messages(row[name], name, made)
            if isinstance(messages, str):
                return messages
            row[name] = messages
    found = _with_responses(row, labels, made)
    return found if isinstance(found, str) else _with_prompt_of_conversations(_with_margin(found, made), made)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of `a.b` and `a.0` within one; None where there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def with_system(row: Row, made: Counter[str]) -> Row:
    """`row` with its system column as a system turn, or before a text prompt and an empty line."""
    name = next((name for name in _SYSTEM if isinstance(row.get(name), str) and row[name].strip()), None)
    key = next((key for key in ("messages", "prompt") if row.get(key) is not None), None)
    rest = {key_: value for key_, value in row.items() if key_ not in _SYSTEM}
    if name is None or key is None:
        return rest if name is None else row
    asked = row[key]
    if isinstance(asked, list):
        if asked and isinstance(asked[0], dict) and asked[0].get("role") != "system":
            made["system texts became a system turn"] += 1
            asked = [{"role": "system", "content": row[name]}, *asked]
    else:
        made["system texts stand before the prompt, with an empty line between"] += 1
        asked = f"{row[name]}\n\n{asked}"
    return rest | {key: asked}


def without_answer(prompt: Any, made: Counter[str]) -> Any:
    """A prompt without the assistant's turn that it ends with."""
    if not isinstance(prompt, list) or len(prompt) < 2 or not isinstance(prompt[-1], dict):
        return prompt
    if prompt[-1].get("role") != "assistant":
        return prompt
    made["prompts ended with an answer, which is left out"] += 1
    return without_answer(prompt[:-1], Counter())


def guess(row: Mapping[str, Any]) -> str | None:
    """The line of a recipe that would map two responses and a label, where the columns look like such; else None."""
    texts = [name for name, value in row.items() if isinstance(value, str | list)]
    for one, other in itertools.combinations(texts, 2):
        ends = re.match(r"(.*?)(0|a|A|1)$", one), re.match(r"(.*?)(1|b|B|2)$", other)
        if ends[0] and ends[1] and ends[0][1] == ends[1][1] and ends[0][2] != ends[1][2]:
            label = next((name for name in _LABELS if name in row), "LABEL")
            asked = next(
                (name for name in ("prompt", "question", "history", "context", "instruction") if name in row), "PROMPT"
            )
            mapped = f"prompt: {asked}, " if asked != "prompt" else ""
            return f"columns: {{{mapped}responses: [{one}, {other}], label: {label}}}"
    return None


# ---------------------------------------------------------------- messages


def _messages(messages: Sequence[Any], name: str, made: Counter[str]) -> list[Any] | str:
    """Messages with role and content as text; what else is in them stays."""
    found: list[Any] = []
    written = joined = ""
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            return list(messages)  # data.py says what is wrong
        message = dict(message)
        for other, ours in (("from", "role"), ("value", "content")):
            if ours not in message and other in message:
                message[ours] = message.pop(other)
                written = "conversations written with from and value are read as role and content"
        role = message.get("role")
        message["role"] = ROLES.get(role.lower(), role) if isinstance(role, str) else role
        if isinstance(message.get("content"), list):
            text = _joined(message["content"])
            if text is None:
                kind = next(_kind(part) for part in message["content"] if _kind(part) != "text")
                return f"{name}[{index}]: its content has a part of type {kind!r}: only text is read"
            message["content"] = text
            joined = "conversations with messages in parts: their texts are joined"
        if message.get("content") is None and message.get("tool_calls"):
            message["content"] = ""
        found.append(message)
    made.update(one for one in (written, joined) if one)
    return found


def _kind(part: Any) -> str:
    if isinstance(part, str):
        return "text"
    return str(part.get("type", "text")) if isinstance(part, dict) else type(part).__name__


def _joined(parts: Iterable[Any]) -> str | None:
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if _kind(part) != "text" or not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


# ---------------------------------------------------------------- preferences


def _with_responses(row: Row, labels: Mapping[str, str | int] | None, made: Counter[str]) -> Row | str:
    """`row` with `responses` and `scores`, from a list of answers with ranks, from ratings, or from a label."""
    responses = row.get("responses", row.get("answers"))
    if not isinstance(responses, list):
        return row
    row["responses"] = responses
    row.pop("answers", None)
    if responses and all(isinstance(one, dict) and "role" not in one for one in responses):
        texts = [next((one[key] for key in _ANSWER_TEXTS if key in one), None) for one in responses]
        scores = [_number_of(one) for one in responses]
        if None in texts:
            return f"responses: an object needs one of {', '.join(_ANSWER_TEXTS)}; it has {', '.join(responses[0])}"
        row["responses"] = texts
        if None not in scores:
            row["scores"] = scores
    for name, sign in (("ratings", 1), ("ranks", -1)):
        if isinstance(row.get(name), list) and row.get("scores") is None:
            numbers = [_float(value) for value in row.pop(name)]
            if None in numbers:
                return f"{name}: expected numbers, one a response"
            row["scores"] = [sign * number for number in numbers if number is not None]
            made[f"rows are ranked by their {name}"] += 1
    if row.get("label") is not None and row.get("scores") is None:
        chosen = _first_or_second(row.pop("label"), labels)
        if isinstance(chosen, str):
            return chosen
        row["scores"] = chosen
    return row


def _first_or_second(label: Any, labels: Mapping[str, str | int] | None) -> list[float] | str:
    """Scores of two responses from the label of the better one; equal ones for a tie."""
    word = str(int(label) if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()) else label)
    if labels:
        names = {str(value): name for name, value in labels.items()}
        side = names.get(word)
    else:
        low = word.strip().lower()
        side = "first" if low in _FIRST else "second" if low in _SECOND else "tie" if low.startswith("tie") else None
    if side is None:
        return (
            f"label: {label!r} names neither response; say what it means: label: {{first: ..., second: ..., tie: ...}}"
        )
    return {"first": [1.0, 0.0], "second": [0.0, 1.0], "tie": [0.0, 0.0]}[side]


def _number_of(answer: Mapping[str, Any]) -> float | None:
    """An answer's score, the higher the better: its own, or its rank with the sign changed."""
    for names, sign in ((_BETTER_HIGH, 1), (_BETTER_LOW, -1)):
        for name in names:
            number = _float(answer.get(name))
            if number is not None:
                return sign * number
    return None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _with_margin(row: Row, made: Counter[str]) -> Row:
    """`row` with the difference of its two scores as the margin; 0 where the chosen one is scored lower."""
    scores = [_float(row.get(name)) for name in ("score_chosen", "score_rejected")]
    if row.get("margin") is not None or scores[0] is None or scores[1] is None:
        return row
    difference = scores[0] - scores[1]
    made["margins are score_chosen - score_rejected"] += 1
    if difference < 0:
        made["pairs whose chosen response is scored lower: their margin is 0"] += 1
    return row | {"margin": max(0.0, difference)}


def _with_prompt_of_conversations(row: Row, made: Counter[str]) -> Row | str:
    """`row` whose text prompt repeats a turn of whole conversations: the conversations say it."""
    prompt = row.get("prompt")
    whole = [row[name] for name in ("chosen", "rejected") if isinstance(row.get(name), list)]
    texts_beside = any(isinstance(row.get(name), str) for name in ("chosen", "rejected"))
    if not isinstance(prompt, str) or not whole or texts_beside:
        return row
    if all(len(one) == 1 and isinstance(one[0], dict) and one[0].get("role") == "assistant" for one in whole):
        made["text prompts beside an answer as a message became a user's turn"] += 1
        return row | {"prompt": [{"role": "user", "content": prompt}]}
    users = [[m.get("content") for m in one if isinstance(m, dict) and m.get("role") == "user"] for one in whole]
    if all(any(str(text).strip() == prompt.strip() for text in texts) for texts in users):
        made["text prompts repeat a turn of the conversations beside them: these are used"] += 1
        return {key: value for key, value in row.items() if key != "prompt"}
    return (
        "prompt is a string that no user's turn of chosen and rejected repeats: leave the column out with columns, or "
        "give the prompt as messages"
    )
