"""Columns of public data sets are guessed: the line in the message can be pasted, and then the rows are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rlhfctl.data import guess
from rlhfctl.data.load import check_all
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Data

CHATS = [
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}] for answer in ("good", "bad")
]  # fmt: skip
TEXTS = (" good", " bad")


def rows(count: int = 12, **columns: Any) -> list[dict[str, Any]]:
    """Rows in which every column that is a function is called with the row's number."""
    return [{name: value(n) if callable(value) else value for name, value in columns.items()} for n in range(count)]


def two(one: str, other: str, **more: Any) -> list[dict[str, Any]]:
    return rows(**{one: TEXTS[0], other: TEXTS[1]}, **more)


# name of the set -> (its rows, the line's keys, how many of 12 rows then choose the good response)
PREFERENCES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], int]] = {
    "safety": (
        two("response_0", "response_1", prompt="q", better_response_id=lambda n: n % 2, is_safe=True),
        {"columns": {"responses": ["response_0", "response_1"], "label": "better_response_id"}}, 6,
    ),
    "forum": (  # 1 means that A is better
        two("human_ref_A", "human_ref_B", history="q", labels=lambda n: int(n % 3 > 0), score_ratio=1.5),
        {
            "columns": {"prompt": "history", "responses": ["human_ref_A", "human_ref_B"], "label": "labels"},
            "label": {"first": 1, "second": 0},
        }, 8,
    ),
    "strength": (  # negative: the first is better; 0: a tie
        two("response_1", "response_2", prompt="q", preference_strength=lambda n: n % 4 - 2),
        {
            "columns": {"responses": ["response_1", "response_2"], "label": "preference_strength"},
            "label": {"first": [-2, -1], "second": [1, 2], "tie": 0},
        }, 6,
    ),
    "strength of conversations": (
        two("response1", "response2", context=CHATS[0][:1], overall_preference=lambda n: (-3, 2)[n % 2]),
        {
            "columns": {"prompt": "context", "responses": ["response1", "response2"], "label": "overall_preference"},
            "label": {"first": [-3, -2, -1], "second": [1, 2, 3], "tie": 0},
        }, 6,
    ),
    "arena": (
        rows(conversation_a=CHATS[0], conversation_b=CHATS[1], winner=lambda n: ("model_a", "tie")[n % 2]),
        {"columns": {"responses": ["conversation_a", "conversation_b"], "label": "winner"}}, 6,
    ),
    "arena in marks": (
        two("response_a", "response_b", prompt="q", winner_model_a=1, winner_model_b=0, winner_tie=0),
        {
            "columns": {
                "responses": ["response_a", "response_b"],
                "label": ["winner_model_a", "winner_model_b", "winner_tie"],
            }
        }, 12,
    ),
    "counted from 1": (
        two("answer1", "answer2", question="q", preferred=lambda n: n % 2 + 1),
        {
            "columns": {"prompt": "question", "responses": ["answer1", "answer2"], "label": "preferred"},
            "label": {"first": 1, "second": 2},
        }, 6,
    ),
    "scores": (
        two("answer_0", "answer_1", question={"full_text": "q", "id": "x"}, score_0=0.5, score_1=-0.5),
        {
            "columns": {
                "prompt": "question.full_text", "responses": ["answer_0", "answer_1"], "scores": ["score_0", "score_1"]
            }
        }, 12,
    ),
    "list": (
        rows(instruction="q", generations=[" bad", " good"], ratings=["2", "5"]),
        {"columns": {"prompt": "instruction", "responses": "generations", "scores": "ratings"}}, 12,
    ),
    "list of objects": (
        rows(query="q", completions=[{"response": " bad", "score": 2}, {"response": " good", "score": 4}]),
        {"columns": {"prompt": "query", "responses": "completions"}}, 12,
    ),
    "other words": (
        rows(question="q", preferred=" good", dispreferred=" bad"),
        {"columns": {"prompt": "question", "chosen": "preferred", "rejected": "dispreferred"}}, 12,
    ),
    "question alone": (rows(question="q", chosen=" good", rejected=" bad"), {"columns": {"prompt": "question"}}, 12),
    "nested": (
        rows(data={"prompt": "q", "chosen": " good", "rejected": " bad"}),
        {"columns": {"prompt": "data.prompt", "chosen": "data.chosen", "rejected": "data.rejected"}}, 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_line_of_the_message_can_be_pasted(name: str, tmp_path: Path) -> None:
    made, expected, good = PREFERENCES[name]
    for number, row in enumerate(made):  # prompts that differ, so that some can be held out
        for key in row:
            row[key] = json.loads(json.dumps(row[key]).replace('"q"', f'"q {number}"'))
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in made))
    with pytest.raises(DataError) as caught:
        check_all(Data.model_validate({"preferences": {"source": str(source)}}), 0)
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith("    preferences: ")]
    section = YAML(typ="safe", pure=True).load(line)["preferences"]
    assert section == {"source": "rows.jsonl"} | expected
    loaded = check_all(Data.model_validate({"preferences": section | {"source": str(source)}}), 0)["preferences"]
    chosen = [json.dumps(row["chosen"]) for row in loaded.rows]
    assert sum("good" in text for text in chosen) == good
    assert len(chosen) + sum(why == "ties" for why in loaded.left_out.values()) == 12


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("demonstrations", {"question": "q", "answer": " a"}, {"prompt": "question", "completion": "answer"}),
        ("demonstrations", {"prompt": "q", "response": " a"}, {"completion": "response"}),
        (
            "demonstrations",
            {"instruction": "q", "input": "x", "output": " a"},
            {"prompt": ["instruction", "input"], "completion": "output"},
        ),
        ("demonstrations", {"dialogue": CHATS[0], "id": 1}, {"messages": "dialogue"}),
        ("demonstrations", {"prompt": "q", "chosen": CHATS[0], "rejected": CHATS[1]}, {"messages": "chosen"}),
        ("demonstrations", {"prompt": "q", "chosen": " a", "rejected": " b"}, {"completion": "chosen"}),
        ("prompts", {"question": "q", "answer": "4"}, {"prompt": "question"}),
        ("prompts", {"data": {"question": "q"}}, {"prompt": "data.question"}),
        ("prompts", {"dialog": CHATS[0]}, {"messages": "dialog"}),
    ],
)
def test_demonstrations_and_prompts_are_guessed_too(name: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert guess.options(name, [row] * 3) == {"columns": expected}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("demonstrations", {"prompt": "q", "completion": " a"}),  # needs no guess
        ("demonstrations", {"alpha": "q", "beta": " a"}),
        ("demonstrations", {"question": 3, "answer": " a"}),
        ("preferences", {"response_0": " a", "response_1": " b", "prompt": "q"}),  # nothing says which is better
        ("preferences", {"prompt": "q", "completion": " a", "label": True}),  # one response is no pair
        ("prompts", {}),
    ],
)
def test_nothing_is_guessed_where_nothing_fits(name: str, row: dict[str, Any]) -> None:
    assert guess.options(name, [row] * 3) == {}


def test_one_bad_row_among_good_ones_is_no_reason_to_guess() -> None:
    good = {"prompt": "q", "completion": " a"}
    assert guess.options("demonstrations", [good] * 9 + [{"question": "q", "answer": " a"}]) == {}


@pytest.mark.parametrize("value", [{"a b": ["yes", "1", "x: y", "", "é", 1, 0.5, True, -3]}, {"on": {"null": "#"}}, []])
def test_a_line_reads_back_as_what_it_says(value: Any) -> None:
    assert YAML(typ="safe", pure=True).load(guess.flow(value)) == value
