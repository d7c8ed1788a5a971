"""Rows as people have them: each column's kind, with the sentence that says what was made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.data.load import load_demonstrations, load_preferences, load_prompts
from rlhfctl.data.types import Rows
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Demonstrations, Preferences, Prompts


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [said("user", "Is tea good?"), said("assistant", "Yes.")]


def load(kind: str, rows: list[dict[str, Any]], folder: Path, **options: Any) -> Rows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if kind == "demonstrations":
        return load_demonstrations(Demonstrations(source=str(path), **options), 0)
    if kind == "prompts":
        return load_prompts(Prompts(source=str(path), **options), 0)
    return load_preferences(Preferences(source=str(path), **options), 0)


# ---------------------------------------------------------------- conversations


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Is tea good?"}, {"from": "gpt", "value": "Yes."}]},
        {"conversation": [{"role": "user", "value": "Is tea good?"}, {"role": "assistant", "value": "Yes."}]},
        {"messages": [{"from": "user", "content": "Is tea good?"}, {"from": "assistant", "content": "Yes."}]},
        {"conversations": CHAT},
    ],
)
def test_sharegpt_and_its_relatives_are_conversations(row: dict[str, Any], tmp_path: Path) -> None:
    found = load("demonstrations", [row, row], tmp_path)
    assert found.rows == [{"messages": CHAT}] * 2
    told = "2 conversations written with from and value are read as role and content"
    assert (told in found.notes) is ("from" in json.dumps(row) or "value" in json.dumps(row))


def test_parts_of_text_are_joined_and_calls_without_text_are_legal(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Is tea "}, {"type": "text", "text": "good?"}]
    call = said("assistant", None, tool_calls=[{"function": {"name": "price"}}])
    row = {"messages": [said("user", parts), call, said("tool", "3"), said("assistant", "Yes.")], "tools": []}
    found = load("demonstrations", [row], tmp_path)
    contents = [message["content"] for message in found.rows[0]["messages"]]
    assert contents == ["Is tea good?", "", "3", "Yes."]
    assert found.rows[0]["messages"][1]["tool_calls"] == [{"function": {"name": "price"}}]
    assert "1 conversations with messages in parts: their texts are joined" in found.notes
    assert "not used: the columns tools" in found.notes


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "video"])
def test_other_parts_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    row = {"messages": [said("user", [{"type": kind, kind: "x"}]), said("assistant", "Yes.")]}
    with pytest.raises(DataError, match=rf"rows.jsonl:1: messages\[0\]: its content has a part of type '{kind}'"):
        load("demonstrations", [row], tmp_path)


# ---------------------------------------------------------------- system, prompts


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_column_is_a_turn_or_stands_before_the_prompt(name: str, tmp_path: Path) -> None:
    found = load("demonstrations", [{name: "Be brief.", "messages": CHAT}], tmp_path)
    assert found.rows == [{"messages": [said("system", "Be brief."), *CHAT]}]
    assert "1 system texts became a system turn" in found.notes
    found = load("demonstrations", [{name: "Be brief.", "prompt": "Tea?", "completion": " Yes."}], tmp_path)
    assert found.rows == [{"prompt": "Be brief.\n\nTea?", "completion": " Yes."}]
    pair = {name: "Be brief.", "prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [said("assistant", "No.")]}
    assert load("preferences", [pair], tmp_path).rows[0]["prompt"] == [said("system", "Be brief."), CHAT[0]]
    assert load("prompts", [{name: "Be brief.", "prompt": "Tea?"}], tmp_path).rows[0]["prompt"] == "Be brief.\n\nTea?"


def test_prompts_that_end_with_an_answer_lose_it(tmp_path: Path) -> None:
    found = load("prompts", [{"messages": CHAT}, {"prompt": [*CHAT, said("user", "And soup?")]}], tmp_path)
    assert [row["prompt"] for row in found.rows] == [CHAT[:1], [*CHAT, said("user", "And soup?")]]
    assert "1 prompts ended with an answer, which is left out" in found.notes
    with pytest.raises(DataError, match="ends with the assistant's turn"):
        load("prompts", [{"prompt": CHAT[1:]}], tmp_path)


@pytest.mark.parametrize("kind", ["preferences", "prompts"])
def test_a_text_prompt_that_repeats_a_turn_gives_way_to_the_conversations(kind: str, tmp_path: Path) -> None:
    row = {"prompt": "Is tea good?", "chosen": CHAT, "rejected": [CHAT[0], said("assistant", "No idea.")]}
    found = load(kind, [row], tmp_path)
    assert found.rows[0]["prompt"] == CHAT[:1]
    assert "1 text prompts repeat a turn of the conversations beside them: these are used" in found.notes
    if kind == "preferences":
        assert found.rows[0]["chosen"] == CHAT[1:]


def test_a_text_prompt_beside_single_answers_becomes_a_turn(tmp_path: Path) -> None:
    row = {"prompt": "Is tea good?", "chosen": CHAT[1:], "rejected": [said("assistant", "No.")]}
    assert load("preferences", [row], tmp_path).rows[0]["prompt"] == CHAT[:1]


def test_a_text_prompt_that_nothing_repeats_is_refused_with_a_way(tmp_path: Path) -> None:
    row = {"prompt": "Is soup good?", "chosen": CHAT, "rejected": [CHAT[0], said("assistant", "No.")]}
    with pytest.raises(DataError, match="no user's turn of the conversations beside it repeats: leave it out"):
        load("preferences", [row], tmp_path)


# ---------------------------------------------------------------- responses


@pytest.mark.parametrize(
    ("label", "options", "chosen"),
    [
        (0, {}, "A"),
        (1, {}, "B"),
        ("model_b", {}, "B"),
        (1, {"label": {"first": 1, "second": 0}}, "A"),
        ("left one", {"label": {"first": "left one", "second": "right one"}}, "A"),
    ],
)
def test_two_responses_and_a_label(label: Any, options: dict[str, Any], chosen: str, tmp_path: Path) -> None:
    row = {"question": "q", "response_0": "A", "response_1": "B", "winner": label}
    names = {"prompt": "question", "responses": ["response_0", "response_1"], "label": "winner"}
    (pair,) = load("preferences", [row], tmp_path, columns=names, **options).rows
    assert (pair["prompt"], pair["chosen"]) == ("q", chosen)


def test_a_tie_and_a_label_that_says_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "a": "A", "b": "B", "winner": one} for one in ("tie", "tie (bothbad)", "model_a")]
    names = {"responses": ["a", "b"], "label": "winner"}
    found = load("preferences", rows, tmp_path, columns=names)
    assert len(found.rows) == 1 and "dropped: 2 ties" in found.notes
    with pytest.raises(DataError, match="label: 'neither' names no response"):
        load("preferences", [rows[0] | {"winner": "neither"}], tmp_path, columns=names)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"prompt": "q", "response_0": "A", "response_1": "B", "better_response_id": 0},
            "columns: {responses: [response_0, response_1], label: better_response_id}",
        ),
        (
            {"history": "q", "human_ref_A": "A", "human_ref_B": "B", "labels": 1},
            "columns: {prompt: history, responses: [human_ref_A, human_ref_B], label: labels}",
        ),
        (
            {"prompt": "q", "response_a": "A", "response_b": "B", "winner": "model_a"},
            "columns: {responses: [response_a, response_b], label: winner}",
        ),
    ],
)
def test_until_it_is_said_the_message_names_the_line(row: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("preferences", [row], tmp_path)
    assert line in str(caught.value.fix)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "answers": [{"answer": "worse", "rank": 2}, {"answer": "best", "rank": 1}]},
        {"prompt": "q", "responses": [{"text": "worse", "score": 0.5}, {"text": "best", "score": 0.7}]},
        {"prompt": "q", "responses": ["worse", "best"], "ratings": [2, 5]},
        {"prompt": "q", "responses": ["worse", "best"], "ranks": ["2", "1"]},
    ],
)
def test_ratings_and_ranks_decide_not_the_order(row: dict[str, Any], tmp_path: Path) -> None:
    (pair,) = load("preferences", [row], tmp_path).rows
    assert (pair["chosen"], pair["rejected"]) == ("best", "worse")


def test_two_scores_are_a_margin_and_contradictions_are_counted(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "A", "rejected": "B"}
    rows = [pair | {"score_chosen": 8.5, "score_rejected": 6.0}, pair | {"score_chosen": 1, "score_rejected": 4}]
    found = load("preferences", rows, tmp_path)
    assert [row["margin"] for row in found.rows] == [2.5, 0.0]
    assert "1 pairs whose chosen response is scored lower: their margin is 0" in found.notes


# ---------------------------------------------------------------- columns, tables


def test_columns_within_columns_and_those_that_nothing_reads(tmp_path: Path) -> None:
    row = {"data": {"ask": ["x", "Tea?"]}, "answer": " Yes.", "id": 7, "url": "u"}
    found = load("demonstrations", [row], tmp_path, columns={"prompt": "data.ask.1", "completion": "answer"})
    assert found.rows == [{"prompt": "Tea?", "completion": " Yes."}]
    assert "not used: the columns id, url" in found.notes


@pytest.mark.parametrize(
    "text",
    [
        ",prompt,completion\n0,Tea?, Yes.\n1,Soup?, No.\n",
        "Unnamed: 0,prompt,completion\n0,Tea?, Yes.\n1,Soup?, No.\n",
        "\ufeffprompt;completion\nTea?; Yes.\n;\nSoup?; No.\n",
        "prompt,completion\nTea?, Yes.\n,\n\nSoup?, No.\n",
    ],
)
def test_tables_as_pandas_and_spreadsheets_write_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    found = load_demonstrations(Demonstrations(source=str(tmp_path / "rows.csv")), 0)
    assert found.rows == [{"prompt": "Tea?", "completion": " Yes."}, {"prompt": "Soup?", "completion": " No."}]
    index = text.startswith((",", "Unnamed"))
    assert any("an index that pandas wrote" in note for note in found.notes) is index
