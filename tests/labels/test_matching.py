"""Labels of a file matched with the questions of a set: the order of the responses does not matter."""

from __future__ import annotations

import json

from rlhfctl.labels import formats
from rlhfctl.labels.items import make_item
from rlhfctl.labels.matching import matched


def test_equal_texts_are_one_question_in_whatever_order() -> None:
    own = make_item("q", ["c", "a", "b"], ["m1", "m2", "m3"])
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [0, 1, 2], "shown": [2, 0, 1], "annotator": "ana"}
    other = {"prompt": "other", "responses": ["a", "b"], "ranks": [0, 1]}
    found = formats.imported("\n".join(map(json.dumps, (row, other))), "me")
    (event,), strangers = matched(found, [own])
    assert event.item == own.id and event.origins == ("m1", "m2", "m3")
    assert event.ranks == (2, 0, 1)  # c is last, a is first
    assert event.shown is not None
    assert [own.responses[place] for place in event.shown] == ["c", "a", "b"]
    assert [item.prompt for item in strangers] == ["other"]


def test_the_same_label_has_the_same_key_each_time() -> None:
    own = make_item("q", ["a", "b"], ["m", "m"])
    text = json.dumps({"prompt": "q", "chosen": "b", "rejected": "a"})
    first, _ = matched(formats.imported(text, "me"), [own])
    again, _ = matched(formats.imported(text, "me"), [own])
    assert [one.key for one in first] == [one.key for one in again] and first[0].ranks == (1, 0)
