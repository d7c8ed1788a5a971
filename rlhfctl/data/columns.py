"""Rename and reshape the columns of a row to rlhfctl's names, before the row is checked.

    columns: {our name: the file's}     other names, values within values, lists made of several columns
    prompt beside whole conversations   the text repeats one of their turns: the prompt is taken from them
    system, tools               a system turn (or the beginning of a text prompt), functions for the chat template
    texts                       made into conversations if the recipe says so
    prompts that end with an answer     the answer is left out

Takes a row and returns a row; BadRow explains why a row cannot be used. Each change is counted in a Tally; load.py
reports it once for a whole source. Leaves out messages (messages.py), scores and labels of several responses
(preferences.py), making pairs (formats.py) and checking whole rows (rows.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rlhfctl.data import messages
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import BadRow, Row

LISTS = ("responses", "scores", "ratings", "ranks", "label")  # several columns make a list; other texts are joined
RESPONSES = ("completion", "chosen", "rejected")
_INDEX = ("Unnamed: 0", "__index_level_0__")  # how pandas names an index that it wrote before
_TURNS = ("conversations", "conversation")
_SYSTEM = ("system", "system_prompt")
_MESSAGE_LISTS = ("messages", "prompt", *RESPONSES)
_NO_SPACES = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # scripts that do not separate words
INDEX_NOTE = "values of a column without a name (an index that pandas wrote) are left out"

# ---------------------------------------------------------------- names of columns


def renamed(row: Row, mapping: Mapping[str, str | list[str]]) -> Row:
    """Rename the columns of `row` to rlhfctl's names. Several columns make a list, or texts joined by an empty line."""
    if not mapping:
        return row
    file_columns = {column for names in mapping.values() for column in names_of(names)}
    result = {key: value for key, value in row.items() if key not in file_columns and key not in mapping}
    for key, names in mapping.items():
        values = [value_at(row, column) for column in names_of(names)]
        if isinstance(names, str):
            if values[0] is not None or names in row:
                result[key] = values[0]
        elif any(value is not None for value in values):
            result[key] = values if key in LISTS else _joined(values)
    return result


def names_of(names: str | list[str]) -> list[str]:
    """List the columns that one entry of `columns` names."""
    return [names] if isinstance(names, str) else names


def _joined(values: Sequence[Any]) -> Any:
    """Join texts with an empty line between them; return other values as a list, which no check accepts as a text."""
    present = [value for value in values if value is not None and value != ""]
    return "\n\n".join(present) if all(isinstance(value, str) for value in present) else present


def value_at(row: Any, path: str) -> Any:
    """Find the value of a column, or of a path such as `a.b` or `a.0` within one; None if there is none.

    In a list of objects, `a.b` is the list of their values of b.
    """
    if isinstance(row, Mapping) and path in row:
        return row[path]
    first, _, rest = path.partition(".")
    if isinstance(row, Mapping):
        inner = row.get(first)
    elif isinstance(row, list) and first.isdecimal():
        inner = row[int(first)] if int(first) < len(row) else None
    elif isinstance(row, list) and row and all(isinstance(item, Mapping) for item in row):
        return [value_at(item, path) for item in row]
    else:
        return None
    return value_at(inner, rest) if rest and inner is not None else None if rest else inner


def unused(rows: Sequence[Row], mapping: Mapping[str, str | list[str]], tally: Tally, *, others: bool) -> list[str]:
    """List the columns with values that nothing read. `others`: also columns that `columns` does not concern."""
    mapped = {column for names in mapping.values() for column in names_of(names)}
    mapped |= {column.partition(".")[0] for column in mapped}
    present = {key for row in rows for key, value in row.items() if value is not None} - mapped - {*_INDEX}
    return sorted(key for key in present if key in mapping or (others and key not in tally.used))


# ---------------------------------------------------------------- conversations


def normalised(row: Row, tally: Tally) -> Row:
    """Return `row` with its conversations as messages with rlhfctl's keys."""
    row = dict(row)
    for name in _INDEX:
        if row.pop(name, None) is not None:
            tally.made[INDEX_NOTE] += 1
    if row.get("messages") is None:
        name = next((name for name in _TURNS if isinstance(row.get(name), list)), "")
        if name:
            row["messages"] = row.pop(name)
            tally.read(name)
    for name in _MESSAGE_LISTS:
        if isinstance(row.get(name), list):
            row[name] = messages.read_messages(row[name], name, tally)
    return row


def with_system(row: Row, tally: Tally) -> Row:
    """Return `row` with its system column as a system turn, or before a text prompt and an empty line."""
    name = next((name for name in _SYSTEM if isinstance(row.get(name), str) and row[name].strip()), None)
    key = next((key for key in ("messages", "prompt") if row.get(key) is not None), None)
    if name is None or key is None:
        return row
    tally.read(name)
    opening, text = row[key], row[name]
    rest = {other: value for other, value in row.items() if other != name}
    if isinstance(opening, str):
        tally.made["system texts stand before the prompt, with an empty line between"] += 1
        return rest | {key: f"{text}\n\n{opening}"}
    if not isinstance(opening, list) or not opening or not isinstance(opening[0], dict):
        return row  # rows.py says what is wrong
    if opening[0].get("role") not in ("system", "developer"):
        tally.made["system texts became a system turn"] += 1
        return rest | {key: [{"role": "system", "content": text}, *opening]}
    if str(opening[0].get("content")).strip() != text.strip():
        tally.made["system texts are left out: the conversation has a system turn of its own"] += 1
    return rest


def with_tools(row: Row, tally: Tally) -> Row:
    """Return `row` with its tools as a list of objects; without the key if there are no tools."""
    value = row.get("tools")
    rest = {key: item for key, item in row.items() if key != "tools"}
    if value is None or value == [] or value == "":
        return rest
    if not isinstance(row.get("messages", row.get("prompt")), list):
        return row  # no template renders a text prompt: the column is reported as not used
    tools = messages.read_tools(value)
    tally.read("tools")
    return rest | {"tools": tools} if tools else rest


def without_answer(row: Row, tally: Tally) -> Row:
    """Return a row of prompts without the assistant's turns that its prompt ends with."""
    prompt = row.get("prompt")
    if not isinstance(prompt, list):
        return row
    end = len(prompt)
    while end and isinstance(prompt[end - 1], dict) and prompt[end - 1].get("role") == "assistant":
        end -= 1
    if end in (0, len(prompt)):
        return row
    tally.made["prompts ended with an answer, which is left out"] += 1
    return row | {"prompt": prompt[:end]}


def as_conversation(row: Row) -> Row:
    """Return `row` with its texts as turns: the prompt as the user's, the responses as the assistant's."""
    if isinstance(row.get("text"), str) and row.get("prompt") is None and row.get("messages") is None:
        raise BadRow(
            "text: as_conversations cannot tell the prompt from the response in one text; turns: reads transcripts"
        )
    row = dict(row)
    for name, role in (("prompt", "user"), *((name, "assistant") for name in RESPONSES)):
        if isinstance(row.get(name), str) and not row[name].strip():
            raise BadRow(f"{name} is empty")
        if isinstance(row.get(name), str):
            row[name] = [{"role": role, "content": row[name].strip()}]
    return row


# ---------------------------------------------------------------- a prompt beside its responses


def agreeing(row: Row, names: Sequence[str], tally: Tally) -> Row:
    """Make prompt and responses (the columns `names`) both text or both messages, and remove repeated turns."""
    prompt: Any = row.get("prompt")
    responses: list[Any] = [row.get(name) for name in names]
    if prompt is None or not prompt or any(not response for response in responses):
        return row
    if isinstance(prompt, str) and all(isinstance(response, list) for response in responses):
        return _text_beside_messages(row, prompt, responses, tally)
    if isinstance(prompt, list) and all(isinstance(response, str) for response in responses):
        tally.made["text responses beside a conversation became the assistant's turn"] += 1
        return row | {
            name: [{"role": "assistant", "content": text.strip()}] if text.strip() else text
            for name, text in zip(names, responses, strict=True)
        }
    if isinstance(prompt, list) and all(isinstance(response, list) for response in responses):
        size = len(prompt)
        if all(len(response) > size and messages.same_turns(response[:size], prompt) for response in responses):
            tally.made["conversations repeat the prompt beside them: it is read once"] += 1
            return row | {name: response[size:] for name, response in zip(names, responses, strict=True)}
    return row


def _text_beside_messages(row: Row, prompt: str, responses: Sequence[Any], tally: Tally) -> Row:
    """Resolve a text prompt beside messages: a turn that they repeat, or the user's turn before the assistant's."""
    if all(isinstance(response[0], dict) and response[0].get("role") == "assistant" for response in responses):
        tally.made["text prompts beside an answer as a message became a user's turn"] += 1
        return row | {"prompt": [{"role": "user", "content": prompt}]}
    if all(repeats(response, prompt) for response in responses):
        tally.made["text prompts repeat a turn of the conversations beside them: these are used"] += 1
        tally.read("prompt")
        return {key: value for key, value in row.items() if key != "prompt"}
    raise BadRow(
        "prompt is a text that no user's turn of the conversations beside it repeats: leave it out "
        "(columns: {unread: prompt}), or give the prompt as messages"
    )


def repeats(conversation: Any, text: str) -> bool:
    """Tell whether a user's turn of the conversation equals the text; white space does not count."""
    if not isinstance(conversation, list):
        return False
    words = text.split()
    turns = (turn for turn in conversation if isinstance(turn, dict) and turn.get("role") == "user")
    return any(str(turn.get("content")).split() == words for turn in turns)


def spaced(row: Row, names: Sequence[str], prefix: str, tally: Tally) -> Row:
    """Return `row` with `prefix` before each text response that follows its text prompt without a space.

    Counts the rows in which two words are joined nevertheless, as "and" + "a bit" are in "anda bit".
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        return row
    row = dict(row)
    joined = ""
    for name in names:
        response = row.get(name)
        if not isinstance(response, str) or not response or prompt[-1].isspace() or response[0].isspace():
            continue
        row[name] = response = prefix + response
        if not response[0].isspace() and _are_joined(prompt[-1], response[0]):
            joined = joined or f"{prompt[-12:]}{response[:8]}"
    if joined:
        tally.made["rows have no space between prompt and response: response_prefix: ' ' puts one there"] += 1
        tally.examples.setdefault("prompt and response are joined, as in", repr(joined))
    return row


def _are_joined(last: str, first: str) -> bool:
    """Tell whether a reader would miss a space between the last and the first character of two texts.

    The second begins with a letter or digit, no bracket or quote opens before it, and its script separates words.
    """
    if not first.isalnum() or unicodedata.category(last) in ("Ps", "Pi"):
        return False
    wide = any(unicodedata.east_asian_width(char) in "WF" for char in (last, first))
    return not wide and not unicodedata.name(first, "").startswith(_NO_SPACES)
