"""Sifting rows: what is repeated or long is left out with its reason, and reasons cost bounded memory."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhfctl.data import sifting
from rlhfctl.data.sifting import Filter, Kept, characters, first_rows, leave_out
from rlhfctl.data.types import PreferenceGroup, pairs
from rlhfctl.recipe.schema import Prompts

GROUP = PreferenceGroup("q", ("a", "b", "c"), (0, 1, 2), ((0, 1), (0, 2), (1, 2)))


def test_a_filter_names_why_a_row_is_left_out_and_counts_it() -> None:
    dropped: Counter[str] = Counter()
    passes = Filter(Prompts(source="d", deduplicate=True, max_chars=3), dropped)
    assert [passes({"prompt": text}) for text in ("ab", "abcd", "abcd", "ab", "b")] == [True, False, False, False, True]
    assert dropped == {"longer than 3 characters": 2, "duplicates": 1} and passes.why == "duplicates"


def test_without_a_wish_all_rows_pass() -> None:
    passes = Filter(Prompts(source="d"), Counter())
    assert passes({"prompt": "a"}) and passes({"prompt": "a"})


def test_kept_rows_are_counted_in_pairs_and_keep_place_and_rule() -> None:
    kept = Kept()
    kept.add([GROUP], "d:1", droppable=False)
    kept.add([], "d:2", droppable=True)
    kept.add([*first_rows(GROUP, 1)], "d:3", droppable=True)
    assert kept.count == 4
    rows = kept.rows("preferences", "f", ["note"], {"d:1": "ties", "d:2": "ties"})
    assert rows.locations == ("d:1", "d:3") and rows.left_out == {"d:2": "ties"} and rows.notes == ("note",)
    assert list(rows.rows) == [*pairs(GROUP), pairs(GROUP)[0]] and list(rows.droppable) == [0, 1]


def test_reasons_are_kept_of_the_first_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sifting, "KEPT", 2)
    left_out: dict[str, str] = {}
    for location, reason in (("d:1", "ties"), ("d:1", "long"), ("d:2", "long"), ("d:3", "long")):
        leave_out(left_out, location, reason)
    assert left_out == {"d:1": "ties", "d:2": "long"}


def test_the_longest_response_counts() -> None:
    assert characters({"prompt": "abc", "chosen": "d", "rejected": "ef"}) == 5
    assert characters({"messages": [{"content": "ab"}, {"content": "c"}], "n": 7}) == 3
