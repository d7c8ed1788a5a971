"""Read conversations in common formats: a list of messages, each with role and content as text.

    from, value         ShareGPT's names of role and content, and its roles (human, gpt, function_call, observation)
    user, assistant     an object for each exchange, instead of one for each message
    parts               a content that is a list: its texts are joined, images, audio and video are refused by name
    tool calls          their content may be null; arguments that are JSON text are read as an object
    tools               a list of objects, or JSON text that holds one

Takes a list of messages and returns a list of messages; BadRow if something cannot be read. Leaves out whether a
conversation is whole (roles, the last turn, empty texts), which rows.py checks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rlhfctl.data.tally import Tally
from rlhfctl.data.types import BadRow

Message = dict[str, Any]

# Role in other formats -> rlhfctl's role.
ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "function_call": "assistant",
    "system": "system", "developer": "developer",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_OTHER_WORDS = "conversations written with from and value are read as role and content"
_EXCHANGES = "conversations with an object for each exchange are read as messages"
_IN_PARTS = "conversations with messages in parts: their texts are joined"
_JSON_ARGUMENTS = "conversations whose tool calls hold their arguments as JSON text: these are read as objects"


def read_messages(value: Sequence[Any], name: str, tally: Tally) -> list[Any]:
    """Return messages with role and content as text; other keys of a message stay. `name` is the column's."""
    changes: set[str] = set()
    result: list[Any] = []
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            return list(value)  # rows.py reports what is wrong
        for message in _exchange(item, changes):
            try:
                result.append(_read_message(message, changes))
            except BadRow as error:
                raise BadRow(f"{name}[{index}]: {error}") from error
    tally.made.update(changes)
    return result


def _exchange(item: Message, changes: set[str]) -> list[Message]:
    """Return the messages of {"user": ..., "assistant": ...}; an item that is a message is returned as it is."""
    spoken = {key: value for key, value in item.items() if isinstance(value, str) and str(key).lower() in ROLES}
    if not spoken or any(key in item for key in (*_ROLE_KEYS, *_CONTENT_KEYS)):
        return [item]
    changes.add(_EXCHANGES)
    return [{"role": key, "content": value} for key, value in spoken.items()]


def _read_message(message: Message, changes: set[str]) -> Message:
    message = dict(message)
    for keys in (_ROLE_KEYS, _CONTENT_KEYS):
        name, other = keys
        if message.get(name) is None and other in message:
            message[name] = message.pop(other)
            changes.add(_OTHER_WORDS)
    role = message.get("role")
    word = role.strip().lower() if isinstance(role, str) else role
    message["role"] = ROLES.get(word, role) if isinstance(word, str) else role
    if isinstance(message.get("content"), list):
        message["content"] = _joined(message["content"])
        changes.add(_IN_PARTS)
    if word == "function_call" and not message.get("tool_calls"):
        call = _json(message.get("content"))
        if not isinstance(call, dict) or "name" not in call:
            raise BadRow("a function_call needs JSON text with name and arguments")
        message |= {"content": "", "tool_calls": [{"type": "function", "function": call}]}
    if message.get("tool_calls"):
        message["content"] = message.get("content") or ""
        message["tool_calls"] = _with_objects(message["tool_calls"], changes)
    elif "tool_calls" in message:
        del message["tool_calls"]  # some exports write an empty list for no call
    return message


def _joined(parts: Sequence[Any]) -> str:
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") != "text"):
            raise _not_text(part)
        texts.append(text)
    return "".join(texts)


def _not_text(part: Any) -> BadRow:
    """Explain which part of a message is not text."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind is None and isinstance(part, dict):
        kind = next((key for key in part if key != "text"), "unknown")
    if kind == "text":
        return BadRow("its content has a part of type 'text' without a text")
    return BadRow(f"its content has a part of type {kind!r}: only text is read")


def _with_objects(calls: Any, changes: set[str]) -> Any:
    """Return tool calls whose arguments are objects, as chat templates expect them."""
    if not isinstance(calls, list):
        return calls
    return [_with_object(call, changes) for call in calls]


def _with_object(call: Any, changes: set[str]) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_object(call["function"], changes)}
    arguments = _json(call.get("arguments"))
    if not isinstance(arguments, dict):
        return call
    changes.add(_JSON_ARGUMENTS)
    return call | {"arguments": arguments}


def read_tools(value: Any) -> list[Any]:
    """Return the tools of a row, a list of objects; BadRow if they are something else."""
    tools = _json(value) if isinstance(value, str) else value
    if isinstance(tools, list):
        tools = [_json(tool) if isinstance(tool, str) else tool for tool in tools]
        if all(isinstance(tool, dict) for tool in tools):
            return tools
    raise BadRow("tools: expected a list of objects that describe functions, or JSON text that holds one")


def _json(text: Any) -> Any:
    """Parse JSON text; None if it is not JSON."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def same_turns(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Tell whether two lists of messages have the same roles and contents; other keys are ignored."""
    return len(one) == len(other) and all(
        isinstance(a, dict) and isinstance(b, dict) and _content_of(a) == _content_of(b)
        for a, b in zip(one, other, strict=True)
    )


def _content_of(message: Message) -> tuple[Any, Any]:
    content = message.get("content")
    return message.get("role"), content.strip() if isinstance(content, str) else content
