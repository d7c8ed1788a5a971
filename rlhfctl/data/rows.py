"""Check one row of a data set: return the rows to use, or raise BadRow with a sentence that explains the fault.

Each of the three public functions takes a row with rlhfctl's names (columns.py), converts it from the formats that its
data set may have, and checks the result: types, roles, empty texts, the last turn. Leaves out rendering by a chat
template and tokens (preflight.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from rlhfctl.data import columns, formats, preferences
from rlhfctl.data.tally import Tally
from rlhfctl.data.text_files import type_name as _type_name
from rlhfctl.data.types import BadRow, Item, PreferenceGroup, Row
from rlhfctl.recipe.schema import Answered, Source

ROLES = ("system", "user", "assistant", "tool", "developer")

Check = Callable[[Row, Source, Tally], Sequence[Item]]


def demonstration_rows(row: Row, section: Source, tally: Tally) -> list[Row]:
    """Return the demonstration of a row: prompt and completion, messages, or text."""
    row = _in_standard_form(row, section, tally)
    if row.get("messages") is None:
        row = _one_kind(row, ("completion",), section, tally)
        if isinstance(row.get("completion"), list) and row.get("prompt") is None:
            row["messages"] = row.pop("completion")  # a whole conversation; the prompt repeated one of its turns
            tally.read("completion")
    return [_checked_demonstration(_with_system_and_tools(row, tally), tally)]


def preference_groups(row: Row, section: Source, tally: Tally) -> list[PreferenceGroup]:
    """Return the group of ranked responses of a row; an empty list if all of them are tied.

    Each pair of a ranked list is checked by itself, like a pair of a file, and faults and changes are reported and
    counted in pairs. There are several groups if the pairs of an implicit prompt share different beginnings.
    """
    row = preferences.with_scores(_in_standard_form(row, section, tally), section, tally)
    pairs = formats.comparisons_of(row, tally.dropped)
    tally.read("tie")
    checked = [(comparison, _checked_pair(pair, section, tally)) for comparison, pair in pairs]
    return formats.grouped(row, checked)


def prompt_rows(row: Row, section: Source, tally: Tally) -> list[Row]:
    """Return the prompt of a row, with its other columns, which reward functions get."""
    row = _with_prompt(_in_standard_form(row, section, tally), tally)
    if section.as_conversations:
        row = row | columns.as_conversation({"prompt": row.get("prompt")})
    row = _with_system_and_tools(row, tally)
    _require(row, "prompt")
    _require_prompt(row["prompt"])
    return [row]


CHECKS: dict[str, Check] = {
    "demonstrations": demonstration_rows,
    "preferences": preference_groups,
    "pretraining": demonstration_rows,
    "prompts": prompt_rows,
}
"""A data set's name -> how its rows are checked."""


def _in_standard_form(row: Row, section: Source, tally: Tally) -> Row:
    """Convert conversations to rlhfctl's keys, and transcripts to conversations."""
    row = columns.normalised(row, tally)
    return row if section.turns is None else formats.with_conversations(row, section.turns)


def _one_kind(row: Row, names: tuple[str, ...], section: Source, tally: Tally) -> Row:
    """Make prompt and responses both messages or both text, with a space between texts if the recipe adds one."""
    row = columns.agreeing(row, names, tally)
    if section.as_conversations:
        row = columns.as_conversation(row)
    return columns.spaced(row, names, section.response_prefix if isinstance(section, Answered) else "", tally)


def _checked_pair(pair: Row, section: Source, tally: Tally) -> Row:
    """Return the pair with a prompt of the same kind as its responses, and checked."""
    pair = columns.agreeing(pair, ("chosen", "rejected"), tally)
    if pair.get("prompt") is None:
        tally.read("prompt")
        if pair.get("chosen") is not None and pair.get("rejected") is not None:
            pair = formats.with_prompt(pair)
    pair = _one_kind(pair, ("chosen", "rejected"), section, tally)
    return _checked_preference(_with_system_and_tools(pair, tally), tally)


def _with_system_and_tools(row: Row, tally: Tally) -> Row:
    return columns.with_tools(columns.with_system(row, tally), tally)


def _with_prompt(row: Row, tally: Tally) -> Row:
    """Return `row` with a prompt: its own, that of its conversation, or the common beginning of its two responses."""
    row = dict(row)
    prompt, whole = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and isinstance(whole, list) and columns.repeats(whole, prompt):
        tally.made["text prompts repeat a turn of the conversations beside them: these are used"] += 1
        prompt = None
    if prompt is None and whole is not None:
        row["prompt"] = row.pop("messages")
    elif isinstance(prompt, str) and isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list):
        with suppress(BadRow):  # a prompt with other words is a prompt, even if the responses disagree
            row = columns.agreeing(row, ("chosen", "rejected"), tally)
    if row.get("prompt") is None and row.get("chosen") is not None and row.get("rejected") is not None:
        return formats.with_prompt(row)  # a row of preferences: only its prompt is needed
    return columns.without_answer(row, tally)


# ---------------------------------------------------------------- the row to use, or what is wrong with it


def _checked_demonstration(row: Row, tally: Tally) -> Row:
    row = {name: value for name, value in row.items() if value is not None}  # some exports write null for none
    tools = {"tools": row["tools"]} if isinstance(row.get("tools"), list) else {}
    if "messages" in row:
        _require_messages(row["messages"], "messages", last="assistant")
        tally.read("messages", *(["prompt"] if _is_repeated(row) else []))
        return {"messages": row["messages"]} | tools
    if "prompt" in row or "completion" in row:
        _require(row, "prompt", "completion")
        _require_prompt(row["prompt"])
        _require_response(row["completion"], "completion", row["prompt"])
        tally.read("prompt", "completion")
        tools = tools if isinstance(row["prompt"], list) else {}
        return {"prompt": row["prompt"], "completion": row["completion"]} | tools
    if "text" not in row:
        raise BadRow(f"needs prompt and completion, or messages, or text; it has {_columns(row)}")
    tally.read("text")
    if not isinstance(row["text"], str):
        raise BadRow(f"text: expected a string, got {_type_name(row['text'])}")
    if not row["text"].strip():
        raise BadRow("text is empty")
    return {"text": row["text"]}


def _is_repeated(row: Row) -> bool:
    """Tell whether the row's text prompt is a turn of its messages: then the prompt can be removed without loss."""
    return isinstance(row.get("prompt"), str) and columns.repeats(row["messages"], row["prompt"])


def _checked_preference(row: Row, tally: Tally) -> Row:
    tally.read("prompt", "chosen", "rejected", "margin")
    _require(row, "prompt", "chosen", "rejected")
    _require_prompt(row["prompt"])
    for name in ("chosen", "rejected"):
        _require_response(row[name], name, row["prompt"])
    if row["chosen"] == row["rejected"]:
        raise BadRow("chosen and rejected are the same")
    margin = preferences.number(row.get("margin"))
    if margin is None and row.get("margin") is not None:
        raise BadRow(f"margin: expected a number, got {row['margin']!r}")
    result: Row = {name: row[name] for name in ("prompt", "chosen", "rejected")}
    if margin is not None:
        result["margin"] = margin
    if isinstance(row.get("tools"), list) and isinstance(row["prompt"], list):
        result["tools"] = row["tools"]
    return result


def _require(row: Row, *names: str) -> None:
    """Raise BadRow if the row lacks one of these columns."""
    absent = [name for name in names if row.get(name) is None]
    if absent:
        raise BadRow(f"has no {' and no '.join(absent)}; it has {_columns(row)}")


def _require_prompt(prompt: object) -> None:
    """Raise BadRow unless this is a text, or messages after which the assistant speaks."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRow("prompt is empty")
        return
    if not isinstance(prompt, list):
        raise BadRow(f"prompt: expected a string or a list of messages, got {_type_name(prompt)}")
    _require_messages(prompt, "prompt")
    if prompt[-1]["role"] == "assistant":
        raise BadRow("prompt ends with the assistant's turn; the response comes next")
    if not prompt[-1]["content"].strip():
        raise BadRow("prompt: the last message is empty")


def _require_response(response: object, name: str, prompt: object) -> None:
    """Raise BadRow unless this is a response of the prompt's kind."""
    if isinstance(prompt, str) != isinstance(response, str):
        raise BadRow(
            f"{name} is {_type_name(response)} but prompt is {_type_name(prompt)}: both strings or both messages"
        )
    if not isinstance(response, str):
        _require_messages(response, name, last="assistant")
    elif not response.strip():
        raise BadRow(f"{name} is empty")


def _require_messages(messages: object, name: str, last: str | None = None) -> None:
    """Raise BadRow unless these are whole messages, and the last one has the role `last` and is not empty."""
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{name}: expected a list of messages, got {_type_name(messages)}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRow(f"{name}[{index}]: a message needs role and content, both strings")
        calls = message.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise BadRow(f"{name}[{index}]: tool_calls: expected a list of objects")
        if message.get("role") not in ROLES:
            raise BadRow(f"{name}[{index}]: unknown role {message.get('role')!r}; one of {', '.join(ROLES)}")
    if last is not None and messages[-1]["role"] != last:
        raise BadRow(f"{name} must end with a message of the {last}, not of the {messages[-1]['role']}")
    if last is not None and not messages[-1]["content"].strip() and not messages[-1].get("tool_calls"):
        raise BadRow(f"{name}: the last message is empty")


def _columns(row: Row) -> str:
    named = sorted(name for name, value in row.items() if value is not None)
    return ", ".join([*named, *(f"{name} (null)" for name in sorted(row.keys() - named))]) or "no columns"
