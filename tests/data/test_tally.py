"""The tally of changes: one sentence per kind, with its number, over all rows of a source."""

from __future__ import annotations

from rlhfctl.data.tally import Tally


def test_the_changes_of_all_rows_are_one_sentence_per_kind() -> None:
    source = Tally()
    for number in range(3):
        row = Tally()
        row.made["rows were changed"] += 1
        row.made["texts were joined"] += 2 * (number == 1)
        row.dropped["ties"] += number
        row.examples["columns are set apart by"] = f"sign {number}"
        row.read("prompt")
        source.add(row)
    source.read("chosen", "rejected")
    assert list(source.sentences()) == [
        "3 rows were changed",
        "2 texts were joined",
        "columns are set apart by sign 0",  # the first example is kept
    ]
    assert source.dropped == {"ties": 3} and source.used == {"prompt", "chosen", "rejected"}


def test_nothing_counted_is_no_sentence() -> None:
    assert list(Tally().sentences()) == []
