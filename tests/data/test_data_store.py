"""Rows outside memory: they are the rows that were added, in order, and their number costs little memory."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from row_files import write

from rlhfctl.data import sources, store
from rlhfctl.data.load import check_all
from rlhfctl.data.store import Chained, Digests, Locations, Store, Stored, TokenIds, in_order, pick
from rlhfctl.data.types import Rows
from rlhfctl.recipe.schema import Data, Prompts, Source


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


def test_rows_in_files_are_read_checked_and_split_like_rows_in_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = large_and_small(tmp_path)
    expected = shown(check_all(data, 3))
    for name, value in (("KEPT", 3), ("BLOCK", 2), ("_RUN", 4)):
        monkeypatch.setattr(store, name, value)
    found = check_all(data, 3)
    assert all(isinstance(rows.items, Stored | store.Picked) for rows in found.values())
    assert shown(found) == expected
    assert [rows.fingerprint for rows in found.values()] == [rows.fingerprint for rows in check_all(data, 3).values()]


def large_and_small(folder: Path) -> Data:
    """Every way to leave rows out at once: weights, copies, long rows, limits, splits of their own, leaks."""
    asked = [{"prompt": f"Q {n % 40}" + "?" * (n % 7), "n": n} for n in range(90)]
    pairs = [
        {"prompt": f"P {n // 2}", "responses": [f" a{n}", f" b{n % 5}", " c"], "scores": [2, 1, 1]} for n in range(60)
    ]
    demos = [{"prompt": f"Q {n}", "completion": f" answer {n % 9}"} for n in range(50)]
    first, second = write(folder / "p1.jsonl", *pairs[:30]), write(folder / "p2.jsonl", *pairs[30:])
    weighed = [{"source": first, "weight": 1.5}, {"source": second, "weight": 2, "limit": 21, "deduplicate": True}]
    own = write(folder / "test.jsonl", *({"prompt": f"Q {n}"} for n in (1, 2, 2, 3, 70)))
    return Data.model_validate(
        {
            "leaks": "drop",
            "prompts": {
                "source": write(folder / "q.jsonl", *asked),
                "max_chars": 9,
                "deduplicate": True,
                "eval": 5,
                "test_source": {"source": own},
            },
            "preferences": {"sources": weighed, "heldout": 0.3},
            "demonstrations": {"source": write(folder / "d.jsonl", *demos), "limit": 45},
        }
    )


def shown(loaded: dict[str, Rows]) -> dict[str, Any]:
    return {
        name: {
            "rows": list(rows.rows),
            "items": list(rows.items),
            "notes": rows.notes,
            "locations": list(rows.locations),
            "left_out": dict(list(rows.left_out.items())[:3]),
            "split": {part: list(items) for part, items in vars(rows.split).items()} if rows.split else {},
            "count": len(rows.rows),
            "last": rows.rows[len(rows.rows) - 1],
        }
        for name, rows in loaded.items()
    }


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet", "arrow", "saved"])
def test_many_rows_of_each_kind_of_file_are_the_rows_of_a_list(kind: str, tmp_path: Path, few: None) -> None:
    rows = [{"prompt": f"question {number}", "level": str(number)} for number in range(25)]
    table = Dataset.from_list(rows)
    path = tmp_path / f"d.{kind}"
    if kind.startswith("jsonl"):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind == "csv":
        table.to_csv(str(path))
    elif kind == "parquet":
        table.to_parquet(str(path))
    else:
        table.save_to_disk(str(tmp_path / "saved"))
        path = next((tmp_path / "saved").glob("*.arrow")) if kind == "arrow" else tmp_path / "saved"
    found, places, _ = sources.read(Source(source=str(path)), "prompt")
    assert isinstance(found, Stored) and list(found) == rows and len(places) == 25


def test_reading_holds_a_few_bytes_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def most(count: int) -> int:
        """The highest memory of Python objects while `count` rows of 300 characters are read, checked and split."""
        rows = ({"prompt": f"{number} " + "word " * 60} for number in range(count))
        prompts = Prompts(source=write(tmp_path / f"{count}.jsonl", *rows), eval=4, test=4)
        tracemalloc.start()
        assert len(check_all(Data(prompts=prompts), 0)["prompts"].rows) == count
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    for name, value in (("KEPT", 200), ("BLOCK", 8), ("_RUN", 1024)):
        monkeypatch.setattr(store, name, value)
    assert (most(8_000) - most(4_000)) / 4_000 < 60
