"""Rows outside memory: they are the rows that were added, in order, and their number costs little memory."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.data import store
from rlhfctl.data.store import Chained, Digests, Locations, Store, Stored, TokenIds, in_order, pick


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than ten rows go to a file, four in a block; eight keys are sorted in memory."""
    for name, value in (("KEPT", 10), ("BLOCK", 4), ("_RUN", 8)):
        monkeypatch.setattr(store, name, value)


def stored(count: int) -> Any:
    kept: Store[dict[str, int]] = Store()
    kept.extend({"n": number} for number in range(count))
    return kept.items()


@pytest.mark.parametrize("count", [0, 1, 10])
def test_few_rows_are_a_list_of_the_same_objects(count: int, few: None) -> None:
    assert stored(count) == [{"n": number} for number in range(count)] and isinstance(stored(count), list)


@pytest.mark.parametrize("count", [11, 12, 13, 16, 31])
def test_many_rows_are_read_from_a_file_in_order_and_one_by_one(count: int, few: None) -> None:
    rows, expected = stored(count), [{"n": number} for number in range(count)]
    assert isinstance(rows, Stored) and len(rows) == count
    assert list(rows) == expected and rows == expected and expected == rows
    assert [rows[number] for number in range(count)] == expected
    assert rows[-1] == expected[-1] and rows[3:9:2] == expected[3:9:2] and list(rows[:11]) == expected[:11]
    assert rows != expected[1:] and rows != [*expected[1:], {"n": 0}]
    for wrong in (count, -count - 1):
        with pytest.raises(IndexError):
            rows[wrong]


def test_two_readers_of_a_file_do_not_disturb_each_other(few: None) -> None:
    rows = stored(30)
    assert [(one["n"], other["n"]) for one, other in zip(rows, rows[::-1], strict=True)] == [
        (number, 29 - number) for number in range(30)
    ]


def test_picked_and_chained_rows_stand_where_they_should(few: None) -> None:
    rows = stored(30)
    assert [row["n"] for row in pick(rows, [29, 0, 7])] == [29, 0, 7]
    assert [row["n"] for row in pick(rows, list(range(0, 30, 2)))] == list(range(0, 30, 2))
    both = Chained(rows, [], [{"n": 30}])
    assert [row["n"] for row in both] == list(range(31)) and both[30] == {"n": 30} and both[29] == {"n": 29}


def test_keys_sorted_on_disk_are_in_the_order_of_keys_sorted_in_memory(few: None) -> None:
    keys = [random.Random(number).choice(["a", "b", "é", "\U0001f600", "\uffff", ""]) * 2 for number in range(50)]
    expected = sorted((key, place) for place, key in enumerate(keys))
    assert list(in_order(iter(keys))) == expected
    assert list(in_order(keys[:5])) == sorted((key, place) for place, key in enumerate(keys[:5]))


@pytest.mark.parametrize("location", ["a.jsonl:1", "a.jsonl:0", "b row 12", "c:007", "", "12", "9" * 30, "no number"])
def test_a_location_reads_back_as_it_was_written(location: str) -> None:
    assert Locations(["x:1", location, "x:2"]) == ("x:1", location, "x:2")


def test_equal_texts_count_once() -> None:
    found = Digests()
    for text in ("a", "b", "a", "ab", "\ud800"):
        found.add(text)
    assert found.distinct() == 4


def test_ids_read_back_as_lists() -> None:
    ids = TokenIds()
    for row in ([1, 2, 3], [], [70_000]):
        ids.append(row)
    assert list(ids) == [[1, 2, 3], [], [70_000]] and ids[:2] == [[1, 2, 3], []]


def test_a_row_more_costs_a_few_bytes_whatever_its_text(tmp_path: Path) -> None:
    def held(count: int) -> int:
        """Bytes of Python objects after reading `count` rows of 400 characters."""
        tracemalloc.start()
        kept: Store[dict[str, str]] = Store()
        kept.extend({"prompt": f"{number} " * 60} for number in range(count))
        rows, places = kept.items(), Locations(f"a.jsonl:{number}" for number in range(count))
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(rows) == len(places) == count
        return taken

    assert (held(60_000) - held(30_000)) / 30_000 < 40
