"""Turn prompts and responses into turns to show: who speaks, and the text. Pure; every screen draws these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhfctl.data.types import Prompt


@dataclass(frozen=True)
class Turn:
    """What one side says. `role` is empty for a text that is no conversation."""

    role: str
    text: str


def turns_of(content: Prompt) -> list[Turn]:
    """Return the turns of a prompt or a response; a plain text is one turn without a role."""
    if isinstance(content, str):
        return [Turn("", content)]
    return [Turn(str(message.get("role", "")), _text_of(message)) for message in content]


def _text_of(message: Mapping[str, Any]) -> str:
    """Return all that a message says: its content, or its parts, then the calls of tools as JSON."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in content)
    said = [] if content is None else [str(content)]
    said += [] if not calls else [json.dumps(calls, ensure_ascii=False, indent=2)]
    return "\n".join(said)


def plain(content: Prompt) -> str:
    """Return a prompt or a response as one text; the turns of a conversation begin with their role."""
    turns = turns_of(content)
    return "\n\n".join(f"{turn.role}: {turn.text}" if turn.role else turn.text for turn in turns)
