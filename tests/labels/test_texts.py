"""Turns to show: plain texts, conversations, parts and tool calls."""

from __future__ import annotations

from typing import Any

from rlhfctl.labels.texts import Turn, plain, turns_of


def test_a_plain_text_is_one_turn_without_a_role() -> None:
    assert turns_of("a\nb") == [Turn("", "a\nb")] and plain("a\nb") == "a\nb"


def test_a_conversation_keeps_its_roles_parts_and_calls() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "add"}, {"type": "text", "text": "these"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]},
        {"role": "tool", "content": "3"},
    ]
    turns = turns_of(messages)
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"]
    assert turns[0].text == "add\nthese" and '"name": "add"' in turns[1].text
    assert plain(messages).startswith("user: add\nthese\n\nassistant: [")
