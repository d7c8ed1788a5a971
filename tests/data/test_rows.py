"""Checks of one row: every accepted format, and the sentence about each kind of bad row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from row_files import ANSWER, ASK, OTHER, load, message, write

from rlhfctl.data.types import Row
from rlhfctl.errors import DataError


@pytest.mark.parametrize(
    ("kind", "row", "taken"),
    [
        ("demonstrations", {"prompt": "q", "completion": " a"}, ...),
        ("demonstrations", {"prompt": [ASK], "completion": [ANSWER]}, ...),
        ("demonstrations", {"messages": [message("system", ""), ASK, ANSWER, ASK, OTHER]}, ...),
        ("demonstrations", {"text": "once"}, ...),
        ("demonstrations", {"text": "once", "url": 1}, {"text": "once"}),
        ("demonstrations", {"prompt": None, "completion": None, "messages": None, "text": "t"}, {"text": "t"}),
        ("demonstrations", {"messages": None, "prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a"}),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b"}, ...),
        ("preferences", {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER]}, ...),
        ("preferences", {"prompt": [ASK], "chosen": [ANSWER, ASK, ANSWER], "rejected": [OTHER]}, ...),
        (
            "preferences",
            {"prompt": "q", "chosen": "a", "rejected": "b", "id": 1},
            {"prompt": "q", "chosen": "a", "rejected": "b"},
        ),
        ("prompts", {"prompt": "q"}, ...),
        ("prompts", {"prompt": "q", "answer": 4, "hint": None}, ...),
        ("prompts", {"prompt": [message("system", "s"), ASK]}, ...),
        ("prompts", {"prompt": [ASK, message("tool", "42")]}, ...),
        ("prompts", {"messages": [ASK], "answer": 4}, {"prompt": [ASK], "answer": 4}),
        ("prompts", {"prompt": None, "messages": [ASK]}, {"prompt": [ASK]}),
        ("prompts", {"prompt": "q", "messages": None}, ...),
        (
            "prompts",
            {"chosen": [ASK, ANSWER], "rejected": [ASK, OTHER], "id": 1},
            {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER], "id": 1},
        ),
        ("prompts", {"prompt": "q", "chosen": "qa", "rejected": "qb"}, ...),
    ],
)
def test_each_shape_is_taken(tmp_path: Path, kind: str, row: Row, taken: Any) -> None:
    rows = load(kind, write(tmp_path / "d.jsonl", row))
    assert rows.rows == [row if taken is ... else taken] and rows.name == kind


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("demonstrations", {"answer": "a"}, "needs prompt and completion, or messages, or text; it has answer"),
        ("demonstrations", {}, "needs prompt and completion, or messages, or text; it has no columns"),
        ("demonstrations", {"prompt": "q"}, "has no completion; it has prompt"),
        ("demonstrations", {"completion": "a", "id": 1}, "has no prompt; it has completion, id"),
        ("demonstrations", {"prompt": " \n", "completion": "a"}, "prompt is empty"),
        ("demonstrations", {"prompt": "q", "completion": " "}, "completion is empty"),
        ("demonstrations", {"prompt": 3, "completion": "a"}, "expected a string or a list of messages, got a number"),
        ("demonstrations", {"prompt": True, "completion": "a"}, "messages, got true/false"),
        ("demonstrations", {"prompt": "q", "completion": [OTHER, "a"]}, "completion[1]: a message needs role and"),
        ("demonstrations", {"prompt": "q", "completion": [ASK, ANSWER, ASK]}, "must end with a message of"),
        ("demonstrations", {"prompt": [ASK], "completion": ANSWER}, "expected a list of messages, got an object"),
        ("demonstrations", {"prompt": [ASK], "completion": [ASK]}, "completion must end with a message of the"),
        ("demonstrations", {"prompt": [ASK, ANSWER], "completion": [ANSWER]}, "prompt ends with the assistant's turn"),
        ("demonstrations", {"messages": "q"}, "messages: expected a list of messages, got a string"),
        ("demonstrations", {"messages": []}, "messages: expected a list of messages, got a list"),
        ("demonstrations", {"messages": [ASK, "a"]}, "messages[1]: a message needs role and content, both strings"),
        ("demonstrations", {"messages": [ASK, {"role": "assistant", "content": None}]}, "messages[1]: a message needs"),
        ("demonstrations", {"messages": [message("narrator", "q"), ANSWER]}, "messages[0]: unknown role 'narrator'"),
        ("demonstrations", {"messages": [{"content": "q"}, ANSWER]}, "messages[0]: unknown role None"),
        ("demonstrations", {"messages": [ANSWER, ASK]}, "must end with a message of the assistant, not of the user"),
        ("demonstrations", {"messages": [ASK, message("assistant", " ")]}, "messages: the last message is empty"),
        ("demonstrations", {"text": ""}, "text is empty"),
        ("demonstrations", {"text": ["t"]}, "text: expected a string, got a list"),
        ("preferences", {"prompt": "q", "chosen": "a"}, "has no rejected; it has chosen, prompt"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": None}, "has no rejected"),
        ("preferences", {"question": "q"}, "has no prompt and no chosen and no rejected; it has question"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ("preferences", {"prompt": "q", "chosen": "", "rejected": "a"}, "chosen is empty"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": [OTHER]}, "rejected is a list but prompt is"),
        ("preferences", {"prompt": [ASK], "chosen": [ANSWER], "rejected": [ASK]}, "rejected must end with"),
        ("prompts", {"question": "q"}, "has no prompt; it has question"),
        ("prompts", {"prompt": ""}, "prompt is empty"),
        ("prompts", {"prompt": {"a": 1}}, "messages, got an object"),
        ("prompts", {"prompt": [ANSWER]}, "prompt ends with the assistant's turn; the response comes next"),
        ("prompts", {"chosen": "a", "rejected": "b"}, "chosen and rejected begin differently, so none can be told"),
        ("prompts", {"prompt": [message("user", " ")]}, "prompt: the last message is empty"),
    ],
)  # fmt: skip
def test_each_kind_of_bad_row_is_named_with_its_line(tmp_path: Path, kind: str, row: Row, said: str) -> None:
    good = {
        "demonstrations": {"prompt": "q", "completion": "a"},
        "preferences": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "prompts": {"prompt": "q"},
    }[kind]
    source = write(tmp_path / "d.jsonl", good, row, good)
    with pytest.raises(DataError) as caught:
        load(kind, source)
    head, line, fix = str(caught.value).splitlines()
    assert head == f"1 of 3 rows of data.{kind} cannot be used:"
    assert line.startswith(f"    {source}:2: ") and said in line
    assert "columns" in fix and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("demonstrations", {"prompt": " q ", "completion": " a"}, {"prompt": [ASK], "completion": [ANSWER]}),
        (
            "preferences",
            {"prompt": "q", "chosen": "a", "rejected": "b "},
            {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER]},
        ),
        ("preferences", {"prompt": [ASK], "chosen": "a", "rejected": "b"}, {"prompt": [ASK], "chosen": [ANSWER]}),
        ("prompts", {"prompt": "q", "level": 3}, {"prompt": [ASK], "level": 3}),
        ("demonstrations", {"messages": [ASK, ANSWER]}, {"messages": [ASK, ANSWER]}),  # they are turns already
        (
            "demonstrations",
            {"system": "s", "prompt": "q", "completion": "a"},
            {"prompt": [message("system", "s"), ASK]},
        ),
    ],
)
def test_as_conversations_makes_turns_of_texts(
    kind: str, row: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    options = {"test": 1} if kind == "prompts" else {}
    (found,) = load(kind, write(tmp_path / "rows.jsonl", row), as_conversations=True, **options).rows
    assert {name: found[name] for name in expected} == expected


def test_as_conversations_cannot_take_a_text_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="as_conversations cannot tell the prompt from the response in one text"):
        load("demonstrations", write(tmp_path / "rows.jsonl", {"text": "q a"}), as_conversations=True)


@pytest.mark.parametrize(
    ("prompt", "response", "prefix", "expected"),
    [
        ("the tea is", "good", " ", " good"),
        ("the tea is", " good", " ", " good"),  # a space is there
        ("the tea is\n", "good", " ", "good"),
        ("the tea is", "good", "", "good"),
        ("Q: tea?", "good", "\nA: ", "\nA: good"),
    ],
)
def test_response_prefix_stands_where_no_white_space_does(
    prompt: str, response: str, prefix: str, expected: str, tmp_path: Path
) -> None:
    row = {"prompt": prompt, "completion": response}
    loaded = load("demonstrations", write(tmp_path / "rows.jsonl", row), response_prefix=prefix)
    assert loaded.rows == [{"prompt": prompt, "completion": expected}]
    joined = any("response_prefix: ' ' puts one there" in note for note in loaded.notes)
    assert joined is (expected == "good" and not prompt.endswith("\n"))
    pair = {"prompt": prompt, "chosen": response, "rejected": "so so"}
    (found,) = load("preferences", write(tmp_path / "pairs.jsonl", pair), response_prefix=prefix).rows
    assert found["chosen"] == expected
