"""Several responses with scores, ratings, ranks or a label become pairs, the better one chosen; margins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.data.load import load_preferences
from rlhfctl.data.types import Rows
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Preferences

TWO = {"prompt": "q", "response_1": " good", "response_2": " bad"}
LISTED = {"responses": ["response_1", "response_2"], "label": "label"}
GOOD, BAD = (" good", " bad"), (" bad", " good")
CHAT_A = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]
CHAT_B = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def load(path: Path, *rows: dict[str, Any], **options: Any) -> Rows:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_preferences(Preferences(source=str(path), **options), 0)


def pairs(rows: Rows) -> list[tuple[Any, Any]]:
    return [(row["chosen"], row["rejected"]) for row in rows.rows]


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("label", "options", "expected"),
    [
        (0, {}, GOOD),
        (1.0, {}, BAD),
        ("1", {}, BAD),
        ("A", {}, GOOD),
        ("model_b", {}, BAD),
        ("response_1", {}, GOOD),  # the name of the column of the better one
        ("Response_2", {}, BAD),
        (1, {"label": {"first": 1, "second": 0}}, GOOD),
        (0, {"label": {"first": 1, "second": 0}}, BAD),
        (False, {"label": {"first": True, "second": False}}, BAD),
        (-3, {"label": {"first": [-3, -2, -1], "second": [1, 2, 3], "tie": 0}}, GOOD),
        ("2", {"label": {"first": [-3, -2, -1], "second": [1, 2, 3], "tie": 0}}, BAD),
        ("won", {"label": {"first": "won", "second": "lost"}}, GOOD),
    ],
)
def test_a_label_says_which_of_two_is_better(
    label: Any, options: dict[str, Any], expected: tuple[str, str], path: Path
) -> None:
    found = load(path, TWO | {"label": label}, columns=LISTED, **options)
    assert pairs(found) == [expected]
    assert any(note.startswith("1 labels are ") and "of 2 is better" in note for note in found.notes)


def test_ties_are_left_out_and_counted(path: Path) -> None:
    rows = [TWO | {"label": label} for label in ("tie", "tie (bothbad)", "a")]
    found = load(path, *rows, columns=LISTED)
    assert len(found.rows) == 1 and "dropped: 2 ties" in found.notes
    assert list(found.left_out.items()) == [(f"{path}:1", "ties"), (f"{path}:2", "ties")]
    rows = [TWO | {"label": label} for label in (0, 1)]
    found = load(path, *rows, columns=LISTED, label={"first": 1, "second": 2, "tie": 0})
    assert pairs(found) == [GOOD] and "dropped: 1 ties" in found.notes


@pytest.mark.parametrize("label", [2, None, "neither", [], 0.5])
def test_a_label_that_names_none_is_a_bad_row(label: Any, path: Path) -> None:
    with pytest.raises(DataError, match=r"label: .* names no response; say what it means: label: \{first"):
        load(path, TWO | {"label": label}, columns=LISTED)


def test_a_row_without_the_label_is_not_read_as_best_first(path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2: label: None names no response"):
        load(path, TWO | {"label": 1}, TWO, columns=LISTED)


@pytest.mark.parametrize(("marks", "expected"), [((1, 0, 0), [GOOD]), (("0", "1", "0"), [BAD]), ((0, 0, 1), [])])
def test_a_column_of_marks_for_each_response_and_for_ties(marks: Any, expected: Any, path: Path) -> None:
    names = ("winner_a", "winner_b", "winner_tie")
    rows = [TWO | dict(zip(names, one, strict=True)) for one in (marks, (1, 0, 0))]
    found = load(path, *rows, columns={"responses": LISTED["responses"], "label": list(names)})
    assert pairs(found) == [*expected, GOOD]


def test_whole_conversations_with_a_winner(path: Path) -> None:
    row = {"conversation_a": CHAT_A, "conversation_b": CHAT_B, "winner": "model_b"}
    columns = {"responses": ["conversation_a", "conversation_b"], "label": "winner"}
    (pair,) = load(path, row, columns=columns).rows
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (CHAT_A[:1], CHAT_B[1:], CHAT_A[1:])


def test_text_responses_beside_a_conversation_are_turns(path: Path) -> None:
    row = {"context": CHAT_A[:1], "response_1": "good", "response_2": "bad", "label": 0}
    found = load(path, row, columns={"prompt": "context", **LISTED})
    assert found.rows == [{"prompt": CHAT_A[:1], "chosen": CHAT_A[1:], "rejected": CHAT_B[1:]}]
    assert "1 text responses beside a conversation became the assistant's turn" in found.notes


def test_a_label_of_several_responses_sets_the_best_against_each(path: Path) -> None:
    row = {"prompt": "q", "responses": [" a", " b", " c"], "label": 2}
    found = load(path, row)
    assert pairs(found) == [(" c", " a"), (" c", " b")]


# ---------------------------------------------------------------- scores, ratings, ranks


@pytest.mark.parametrize(
    ("name", "values", "order"),
    [
        ("scores", [1, 3, 2], "bca"),
        ("ratings", ["1", "3", "2"], "bca"),
        ("ranks", [1, 3, 2], "acb"),
        ("ranks", [1, 1, 2], "acbc"),  # a tie of the first two
    ],
)
def test_numbers_beside_the_responses_rank_them(name: str, values: list[Any], order: str, path: Path) -> None:
    row = {"prompt": "q", "responses": [" a", " b", " c"], name: values}
    found = pairs(load(path, row))
    if len(order) == 3:
        best, middle, worst = order
        assert set(found) == {(f" {x}", f" {y}") for x, y in ((best, middle), (best, worst), (middle, worst))}
    else:
        assert set(found) == {(" a", " c"), (" b", " c")}


@pytest.mark.parametrize("key", ["rank", "score"])
def test_objects_with_their_own_number(key: str, path: Path) -> None:
    row = {"prompt": "q", "answers": [{"answer": " one", key: 2, "model": "x"}, {"answer": " two", key: 1}]}
    expected = (" two", " one") if key == "rank" else (" one", " two")
    assert pairs(load(path, row)) == [expected]


def test_paths_into_a_list_of_objects(path: Path) -> None:
    row = {"ask": {"text": "q"}, "summaries": [{"body": " one"}, {"body": " two"}], "choice": 1}
    columns = {"prompt": "ask.text", "responses": "summaries.body", "label": "choice"}
    assert pairs(load(path, row, columns=columns)) == [(" two", " one")]


def test_two_responses_with_a_score_each_in_columns_of_their_own(path: Path) -> None:
    row = {"prompt": "q", "answer_0": " one", "answer_1": " two", "score_0": "-0.5", "score_1": "0.5"}
    columns = {"responses": ["answer_0", "answer_1"], "scores": ["score_0", "score_1"]}
    assert pairs(load(path, row, columns=columns)) == [(" two", " one")]


def test_responses_without_a_rating_are_left_out_and_counted(path: Path) -> None:
    row = {"prompt": "q", "responses": [" a", " b", " c"], "ratings": ["2", "N/A", "4"]}
    found = load(path, row)
    assert pairs(found) == [(" c", " a")] and "dropped: 1 responses without a score" in found.notes
    with pytest.raises(DataError, match="fewer than two of its responses have a score"):
        load(path, row | {"ratings": ["2", None, ""]})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ratings": [1]}, "ratings: expected 2 numbers, one a response"),
        ({"ratings": [1, "high"]}, "ratings: expected numbers, the higher the better"),
        ({"ranks": [1, True]}, "ranks: expected numbers, the lower the better"),
        ({"ranks": 3}, "ranks: expected 2 numbers, one a response"),
    ],
)
def test_numbers_that_do_not_fit_are_said(more: dict[str, Any], said: str, path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load(path, {"prompt": "q", "responses": [" a", " b"]} | more)


def test_that_a_list_is_read_as_best_first_is_said(path: Path) -> None:
    row = {"prompt": "q", "responses": [" a", " b"], "helpful": [2, 5]}
    found = load(path, row)
    assert pairs(found) == [(" a", " b")]
    assert (
        "1 rows of responses are read as best first: no scores, ratings, ranks or label stand beside them"
        in found.notes
    )
    assert "1 rows hold a number for each response in helpful: columns: {scores: helpful} ranks by it" in found.notes
    assert pairs(load(path, row, columns={"scores": "helpful"})) == [(" b", " a")]


# ---------------------------------------------------------------- margins


def test_margins_are_differences_and_contradictions_are_counted(path: Path) -> None:
    pair = {"prompt": "q", "chosen": " a", "rejected": " b"}
    scored = [pair | {"score_chosen": one, "score_rejected": 3} for one in (8.5, "4", 1, 3)]
    found = load(path, *scored, pair | {"score_chosen": 5})
    assert [row.get("margin") for row in found.rows] == [5.5, 1.0, 0.0, 0.0, None]
    assert "1 pairs whose chosen response is scored lower: their margin is 0" in found.notes
    assert any(note.startswith("4 margins are score_chosen - score_rejected") for note in found.notes)
    found = load(path, *scored, columns={"unread": "score_chosen"})  # the way out that the note names
    assert not any("margin" in row for row in found.rows)
    assert load(path, scored[0] | {"margin": 1}).rows[0]["margin"] == 1
    names = {"score_chosen": "chosen_rating", "score_rejected": "rejected_rating"}
    found = load(path, pair | {"chosen_rating": 3, "rejected_rating": 1}, columns=names)
    assert found.rows[0]["margin"] == 2
