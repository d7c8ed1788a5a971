"""Check one row: give the rows to use of it, or a sentence that says what is wrong with it.

Each of the three functions below takes a row under our names (columns.py), puts it through the shapes that its data set
may have, and checks the result: types, roles, empty texts, the last turn. Leaves out what a chat template or a
tokenizer makes of a row (preflight.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhfctl.data import columns, formats, preferences
from rlhfctl.data.sources import type_name as _type_name
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import Comparison, Item, PreferenceGroup, Row
from rlhfctl.recipe.schema import Answered, Source

ROLES = ("system", "user", "assistant", "tool", "developer")

Check = Callable[[Row, Source, Tally], "Sequence[Item] | str"]  # the rows to use, or what is wrong


def demonstration_rows(row: Row, section: Source, tally: Tally) -> list[Row] | str:
    """Give the demonstration that a row holds: prompt and completion, messages, or text."""
    shaped = _begun(row, section, tally)
    if isinstance(shaped, dict) and shaped.get("messages") is None:
        shaped = _one_kind(shaped, ("completion",), section, tally)
        if isinstance(shaped, dict) and isinstance(shaped.get("completion"), list) and shaped.get("prompt") is None:
            shaped["messages"] = shaped.pop("completion")  # a whole conversation, whose turn the prompt repeated
            tally.read("completion")
    return _ended(shaped, tally, _check_demonstration)


def preference_groups(row: Row, section: Source, tally: Tally) -> list[PreferenceGroup] | str:
    """Give the group of ranked responses that a row holds; an empty list where all of them are tied.

    Each pair of a ranked list is checked by itself, as a file's own pair is, so what is wrong with it or made of it is
    said and counted in pairs. They are more than one group where the pairs of an implicit prompt share different ones.
    """
    shaped = _begun(row, section, tally)
    if isinstance(shaped, dict):
        shaped = preferences.with_scores(shaped, section, tally)
    if isinstance(shaped, str):
        return shaped
    found = formats.comparisons_of(shaped, tally.dropped)
    if isinstance(found, str):
        return found
    tally.read("tie")
    checked: list[tuple[Comparison, Row]] = []
    for comparison, pair in found:
        read = _ended(_pair(pair, section, tally), tally, _check_preference)
        if isinstance(read, str):
            return read
        checked += [(comparison, one) for one in read]
    return formats.grouped(shaped, checked)


def prompt_rows(row: Row, section: Source, tally: Tally) -> list[Row] | str:
    """Give the prompt that a row holds, with its other columns, which reward functions are given."""
    shaped = _begun(row, section, tally)
    if isinstance(shaped, dict):
        shaped = _with_asked(shaped, tally)
    if isinstance(shaped, dict) and section.as_conversations:
        asked = columns.as_conversation({"prompt": shaped.get("prompt")})
        shaped = shaped | asked if isinstance(asked, dict) else asked
    return _ended(shaped, tally, _check_prompt)


CHECKS: dict[str, Check] = {
    "demonstrations": demonstration_rows,
    "preferences": preference_groups,
    "prompts": prompt_rows,
}
"""A data set's name -> how its rows are checked."""


def _begun(row: Row, section: Source, tally: Tally) -> Row | str:
    """Conversations under our names, and transcripts as conversations."""
    shaped = columns.normalised(row, tally)
    if isinstance(shaped, dict) and section.turns is not None:
        shaped = formats.with_conversations(shaped, section.turns)
    return shaped


def _one_kind(row: Row, names: tuple[str, ...], section: Source, tally: Tally) -> Row | str:
    """Prompt and responses both as messages or both as text, these with a space between where the recipe puts one."""
    shaped = columns.agreeing(row, names, tally)
    if isinstance(shaped, dict) and section.as_conversations:
        shaped = columns.as_conversation(shaped)
    if isinstance(shaped, dict):
        shaped = columns.spaced(shaped, names, section.response_prefix if isinstance(section, Answered) else "", tally)
    return shaped


def _pair(pair: Row, section: Source, tally: Tally) -> Row | str:
    shaped = columns.agreeing(pair, ("chosen", "rejected"), tally)
    if isinstance(shaped, dict) and shaped.get("prompt") is None:
        tally.read("prompt")
        if shaped.get("chosen") is not None and shaped.get("rejected") is not None:
            shaped = formats.with_prompt(shaped)
    return _one_kind(shaped, ("chosen", "rejected"), section, tally) if isinstance(shaped, dict) else shaped


def _ended(shaped: Row | str, tally: Tally, check: Callable[[Row, Tally], Row | str]) -> list[Row] | str:
    """The row with its system text and its tools, checked."""
    if isinstance(shaped, dict):
        shaped = columns.with_tools(columns.with_system(shaped, tally), tally)
    checked = check(shaped, tally) if isinstance(shaped, dict) else shaped
    return checked if isinstance(checked, str) else [checked]


def _with_asked(row: Row, tally: Tally) -> Row | str:
    """`row` with a prompt: its own, that of its conversation, or what its two responses begin with alike."""
    row = dict(row)
    prompt, whole = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and isinstance(whole, list) and columns.repeats(whole, prompt):
        tally.made["text prompts repeat a turn of the conversations beside them: these are used"] += 1
        prompt = None
    if prompt is None and whole is not None:
        row["prompt"] = row.pop("messages")
    elif isinstance(prompt, str) and isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list):
        agreed = columns.agreeing(row, ("chosen", "rejected"), tally)
        row = agreed if isinstance(agreed, dict) else row  # a prompt of its own words is one, whatever stands beside it
    if row.get("prompt") is None and row.get("chosen") is not None and row.get("rejected") is not None:
        return formats.with_prompt(row)  # a row of preferences, from which only its question is wanted
    return columns.without_answer(row, tally)


# ---------------------------------------------------------------- the row to use, or what is wrong with it


def _check_demonstration(row: Row, tally: Tally) -> Row | str:
    row = {name: value for name, value in row.items() if value is not None}  # null is how some exports say: not there
    tools = {"tools": row["tools"]} if isinstance(row.get("tools"), list) else {}
    if "messages" in row:
        problem = _bad_messages(row["messages"], "messages", last="assistant")
        tally.read("messages", *(["prompt"] if _is_repeated(row) else []))
        return problem or {"messages": row["messages"]} | tools
    if "prompt" in row or "completion" in row:
        problem = _missing(row, "prompt", "completion") or _bad_prompt(row["prompt"])
        problem = problem or _bad_completion(row["completion"], "completion", row["prompt"])
        tally.read("prompt", "completion")
        tools = tools if isinstance(row.get("prompt"), list) else {}
        return problem or {"prompt": row["prompt"], "completion": row["completion"]} | tools
    if "text" in row:
        tally.read("text")
        if not isinstance(row["text"], str):
            return f"text: expected a string, got {_type_name(row['text'])}"
        return {"text": row["text"]} if row["text"].strip() else "text is empty"
    return f"needs prompt and completion, or messages, or text; it has {_columns(row)}"


def _is_repeated(row: Row) -> bool:
    """Whether the row's text prompt is a turn of its messages: then nothing is lost with it."""
    return isinstance(row.get("prompt"), str) and columns.repeats(row["messages"], row["prompt"])


def _check_preference(row: Row, tally: Tally) -> Row | str:
    tally.read("prompt", "chosen", "rejected", "margin")
    problem = _missing(row, "prompt", "chosen", "rejected") or _bad_prompt(row["prompt"])
    for name in ("chosen", "rejected"):
        problem = problem or _bad_completion(row[name], name, row["prompt"])
    if not problem and row["chosen"] == row["rejected"]:
        problem = "chosen and rejected are the same"
    margin = preferences.number(row.get("margin"))
    if not problem and margin is None and row.get("margin") is not None:
        problem = f"margin: expected a number, got {row['margin']!r}"
    found: Row = {name: row.get(name) for name in ("prompt", "chosen", "rejected")}
    if margin is not None:
        found["margin"] = margin
    if isinstance(row.get("tools"), list) and isinstance(row.get("prompt"), list):
        found["tools"] = row["tools"]
    return problem or found


def _check_prompt(row: Row, tally: Tally) -> Row | str:
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
        calls = message.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            return f"{name}[{index}]: tool_calls: expected a list of objects"
        if message.get("role") not in ROLES:
            return f"{name}[{index}]: unknown role {message.get('role')!r}; one of {', '.join(ROLES)}"
    if last is not None and messages[-1]["role"] != last:
        return f"{name} must end with a message of the {last}, not of the {messages[-1]['role']}"
    if last is not None and not messages[-1]["content"].strip() and not messages[-1].get("tool_calls"):
        return f"{name}: the last message is empty"
    return None


def _columns(row: Row) -> str:
    named = sorted(name for name, value in row.items() if value is not None)
    return ", ".join([*named, *(f"{name} (null)" for name in sorted(row.keys() - named))]) or "no columns"
