"""The types of data: groups and their pairs, repetition, and locations by the identity of rows."""

from __future__ import annotations

import dataclasses
import pickle

from rlhfctl.data.types import PreferenceGroup, PromptSplit, Row, Rows, examples, pairs, repeated

RANKED = PreferenceGroup("q", ("best", "middle", "worst"), (0, 1, 2), ((0, 1), (0, 2), (1, 2)), margin=0.5)


def test_pairs_are_rows_of_the_better_and_the_worse_response() -> None:
    first, _, last = pairs(RANKED)
    assert first == {"prompt": "q", "chosen": "best", "rejected": "middle", "margin": 0.5}
    assert last == {"prompt": "q", "chosen": "middle", "rejected": "worst", "margin": 0.5}
    tools = dataclasses.replace(RANKED, margin=None, tools=[{"name": "f"}], views={})
    assert pairs(tools)[0] == {"prompt": "q", "chosen": "best", "rejected": "middle", "tools": [{"name": "f"}]}


def test_a_pair_is_the_same_object_in_a_copy_of_its_group() -> None:
    some = dataclasses.replace(RANKED, comparisons=((1, 2),))
    assert pairs(some)[0] is pairs(RANKED)[2]


def test_repetition_counts_pairs_and_rows() -> None:
    def times(row: Row) -> int:
        return 2 if row.get("rejected", "worst") == "worst" else 0

    (group,) = RANKED.repeated(times)
    assert group.comparisons == ((0, 2), (0, 2), (1, 2), (1, 2)) and group.responses == RANKED.responses
    assert RANKED.repeated(lambda row: 0) == []
    assert repeated({"prompt": "q"}, times) == [{"prompt": "q"}] * 2
    assert examples([RANKED, {"text": "t"}]) == [*pairs(RANKED), {"text": "t"}]


def test_locations_follow_rows_that_are_equal_but_not_the_same() -> None:
    one, two = {"prompt": "q"}, {"prompt": "q"}
    rows = Rows("prompts", [one, two, RANKED], "f", locations=("d:1", "d:2", "d:3"), droppable=bytes([0, 1, 0]))
    assert [place for _, place in rows.located_rows] == ["d:1", "d:2", "d:3", "d:3", "d:3"]
    kept = rows.only(lambda place, row: place == 1 or row.get("chosen") == "middle", notes=("shorter",))
    assert kept.locations == ("d:2", "d:3") and kept.notes == ("shorter",) and kept.fingerprint == "f"
    assert kept.groups[0].comparisons == ((1, 2),) and kept.rows == [two, pairs(RANKED)[2]]
    assert kept.droppable == bytes([1, 0])


def test_a_split_follows_rows_that_are_left_out() -> None:
    places = {"train": [3, 0, 1], "eval": [2], "test": [4]}
    items = [{"prompt": str(number)} for number in range(5)]
    rows = Rows("prompts", items, "f", split=PromptSplit.of(items, places), places=places)
    kept = rows.only(lambda place, row: place not in (1, 2))
    assert isinstance(kept.split, PromptSplit)
    assert [row["prompt"] for row in kept.split.train] == ["3", "0"]
    assert kept.split.eval == [] and [row["prompt"] for row in kept.split.test] == ["4"]


def test_a_group_in_a_file_has_no_cache_of_its_pairs() -> None:
    read = pickle.loads(pickle.dumps(RANKED))
    assert pairs(RANKED) and read == RANKED and read.views == {} and pairs(read) == pairs(RANKED)
    assert PreferenceGroup("q", ("a", "b"), (0, 1), ((0, 1), (0, 1))).once().comparisons == ((0, 1),)
