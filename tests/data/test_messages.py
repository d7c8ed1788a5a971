"""Conversations as people write them become messages with role and content, or a sentence says what cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.data.messages import read_messages, read_tools, same_turns
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import BadRow

CALL = {"type": "function", "function": {"name": "price", "arguments": {"item": "tea"}}}
PLAIN = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]


def read(*messages: Any) -> tuple[Any, dict[str, int]]:
    tally = Tally()
    return read_messages(list(messages), "messages", tally), dict(tally.made)


@pytest.mark.parametrize(
    "written",
    [
        [{"from": "human", "value": "Tea?"}, {"from": "gpt", "value": "Yes."}],
        [{"role": "User", "value": "Tea?"}, {"from": "ASSISTANT", "content": "Yes."}],
        [{"from": "prompter", "value": "Tea?"}, {"from": "bard", "value": "Yes."}],
        [{"user": "Tea?", "assistant": "Yes."}],
        [{"human": "Tea?", "bot": "Yes."}],
        [{"role": "user", "content": [{"type": "text", "text": "Te"}, "a?"]}, {"role": "assistant", "content": "Yes."}],
    ],
)
def test_other_ways_to_write_the_same_two_messages(written: list[Any]) -> None:
    messages, made = read(*written)
    assert messages == PLAIN and list(made.values()) == [1]


def test_messages_as_ours_are_left_alone_with_their_other_keys() -> None:
    named = [PLAIN[0] | {"name": "ann"}, PLAIN[1] | {"thought": None}]
    assert read(*named) == (named, {})


def test_calls_need_no_text_and_their_arguments_become_objects() -> None:
    as_text = CALL | {"function": {"name": "price", "arguments": '{"item": "tea"}'}}
    for call, notes in ((CALL, 0), (as_text, 1)):
        (message,), made = read({"role": "assistant", "content": None, "tool_calls": [call]})
        assert message == {"role": "assistant", "content": "", "tool_calls": [CALL]} and len(made) == notes
    (message,), _ = read({"role": "assistant", "tool_calls": [CALL]})  # no content at all, as tables write it
    assert message["content"] == ""
    (message,), _ = read({"role": "assistant", "content": "Yes.", "tool_calls": []})
    assert message == PLAIN[1]


def test_a_call_as_a_turn_of_its_own() -> None:
    (message, result), _ = read(
        {"from": "function_call", "value": '{"name": "price", "arguments": {"item": "tea"}}'},
        {"from": "observation", "value": "3"},
    )
    assert message == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert result == {"role": "tool", "content": "3"}
    with pytest.raises(BadRow) as told:
        read(*PLAIN, {"from": "function_call", "value": "price(tea)"})
    assert str(told.value) == "messages[2]: a function_call needs JSON text with name and arguments"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image"}, "a part of type 'image': only text is read"),
        ({"type": "input_audio", "input_audio": "x"}, "a part of type 'input_audio': only text is read"),
        ({"image_url": "x"}, "a part of type 'image_url': only text is read"),
        ({"type": "text", "text": None}, "a part of type 'text' without a text"),
        ({}, "a part of type 'unknown': only text is read"),
        (3, "a part of type 'int': only text is read"),
        (None, "a part of type 'NoneType': only text is read"),
    ],
)
def test_parts_that_are_no_text_are_refused_by_name(part: Any, said: str) -> None:
    parts = [{"type": "text", "text": "See:"}, part]
    with pytest.raises(BadRow) as told:
        read({"role": "user", "content": parts})
    assert str(told.value) == f"messages[0]: its content has {said}"


@pytest.mark.parametrize("value", [[{"name": "f"}], '[{"name": "f"}]', ['{"name": "f"}']])
def test_tools_are_objects_or_json_text(value: Any) -> None:
    assert read_tools(value) == [{"name": "f"}]


@pytest.mark.parametrize("value", ["f", "{}", '["f"]', [3], {"name": "f"}, 3, "[" * 100_000])
def test_what_are_no_tools_is_said(value: Any) -> None:
    with pytest.raises(BadRow, match=r"^tools: expected a list of objects"):
        read_tools(value)


def test_the_same_turns_whatever_else_a_message_holds() -> None:
    assert same_turns(PLAIN, [PLAIN[0] | {"name": "ann"}, {"role": "assistant", "content": " Yes. "}])
    assert not same_turns(PLAIN, PLAIN[:1])
    assert not same_turns(PLAIN, [PLAIN[0], {"role": "assistant", "content": "No."}])
