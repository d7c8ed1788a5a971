"""Items of a labelling set: ids, faults with their line, preferences to judge anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhfctl.data.types import PreferenceGroup
from rlhfctl.errors import DataError
from rlhfctl.labels.items import is_labelling_set, item_of, items_of_groups, make_item, read_items, write_items


def test_items_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    made = [
        make_item("q\u2028", ["a", "b", "c"], ["m", "m", "n"], gold=[0, 1, 1], disagreement=0.5),
        make_item(
            [{"role": "user", "content": "hi"}], [[{"role": "assistant", "content": x}] for x in "ab"], ["m", "n"]
        ),
    ]
    write_items(tmp_path / "set.jsonl", [*made, made[0]])
    assert read_items(tmp_path / "set.jsonl") == made and is_labelling_set(tmp_path / "set.jsonl")


def test_an_id_is_that_of_the_texts_alone() -> None:
    one = make_item("q", ["a", "b"], ["m", "n"])
    assert make_item("q", ["a", "b"], ["x", "y"], gold=[0, 1]).id == one.id
    assert make_item("q", ["b", "a"], ["m", "n"]).id != one.id


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q"}, "responses: missing"),
        ({"prompt": "q", "responses": ["a"]}, "2 to 16 responses, not 1"),
        ({"prompt": "q", "responses": [str(n) for n in range(17)]}, "not 17"),
        ({"prompt": "q", "responses": ["a", "a"]}, "two of its responses are equal"),
        ({"prompt": 3, "responses": ["a", "b"]}, "prompt: expected text"),
        ({"prompt": "q", "responses": ["a", {"text": "b"}]}, "responses: expected text"),
        ({"prompt": "q", "responses": ["a", "b"], "rank": 1}, "unknown keys: rank"),
        ({"prompt": "q", "responses": ["a", "b"], "gold": [0]}, "one whole rank per response"),
        ({"prompt": "q", "responses": ["a", "b"], "origins": ["m"]}, "as many origins"),
        ({"prompt": "q", "responses": ["a", "b"], "disagreement": "much"}, "expected a number"),
        ({"prompt": "q", "responses": ["a", "b"], "id": "0123"}, "were they edited"),
        ([], "one JSON object per line"),
    ],
)
def test_a_line_that_is_no_item_is_named(row: object, said: str, tmp_path: Path) -> None:
    good = json.dumps({"prompt": "q", "responses": ["a", "b"]})
    (tmp_path / "set.jsonl").write_text(f"{good}\n\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=said) as found:
        read_items(tmp_path / "set.jsonl")
    assert f"{tmp_path / 'set.jsonl'}:3" in str(found.value)


def test_a_set_without_items_and_a_missing_one_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for name in ("empty.jsonl", "none.jsonl"):
        with pytest.raises(DataError):
            read_items(tmp_path / name)


def test_a_file_of_preferences_is_no_labelling_set_and_its_groups_are_judged_anew(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    assert not is_labelling_set(tmp_path / "pairs.jsonl")
    groups = [
        PreferenceGroup("q", ("a", "b"), (0, 1), ((0, 1),)),
        PreferenceGroup("q", ("a", "b"), (1, 0), ((1, 0),)),  # the same texts: one question
        PreferenceGroup("r", ("a", "a"), (0, 1), ((0, 1),)),
    ]
    found, said = items_of_groups(groups)
    assert [item.prompt for item in found] == ["q"] and found[0].gold is None
    assert said == ["1 rows are left out: two of its responses are equal"]


def test_an_item_without_origins_is_of_unknown_models() -> None:
    assert item_of({"prompt": "q", "responses": ["a", "b"]}).origins == ("unknown", "unknown")
