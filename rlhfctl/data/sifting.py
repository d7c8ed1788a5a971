"""Sift the rows of a source one by one: leave out repeated and long ones, keep the others with their locations.

load.py asks and counts. Memory is bounded: rows that are kept go to a store (store.py), of repeated ones a digest is
remembered, and the reasons for lines that give no row are recorded for the first ones alone.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhfctl.data.store import KEPT, Locations, Store, digest
from rlhfctl.data.types import Item, Row, Rows, count_of, repeated
from rlhfctl.recipe.schema import Source


class Kept:
    """The items that are kept, with their locations, in bounded memory (store.py)."""

    def __init__(self) -> None:
        self._items: Store[Item] = Store()
        self._locations = Locations()
        self._droppable = bytearray()
        self.count = 0  # rows, or pairs

    def add(self, items: Sequence[Item], location: str, *, droppable: bool) -> None:
        """Add the items that one row of a source gives."""
        for item in items:
            self._items.append(item)
            self._locations.append(location)
            self._droppable.append(droppable)
            self.count += count_of(item)

    def rows(self, name: str, fingerprint: str, notes: Iterable[str], left_out: dict[str, str]) -> Rows:
        """Return the rows; `left_out` loses the lines of which a row is kept."""
        if left_out:
            for location in self._locations:
                left_out.pop(location, None)
        return Rows(
            name,
            self._items.items(),
            fingerprint,
            tuple(notes),
            locations=self._locations,
            left_out=left_out,
            droppable=bytes(self._droppable) if any(self._droppable) else b"",
        )


def leave_out(left_out: dict[str, str], location: str, reason: str) -> None:
    """Record why a line gives no row, the first reason of each; of the first KEPT lines alone, to bound memory."""
    if len(left_out) < KEPT:
        left_out.setdefault(location, reason)


class Filter:
    """Say of each row, or pair, in order, whether it is kept: not repeated and not long, if the recipe says so."""

    def __init__(self, section: Source, dropped: Counter[str]) -> None:
        self._section, self._dropped = section, dropped
        self._seen: set[bytes] = set()
        self.why = ""  # why the last one that is not kept is not

    def __call__(self, row: Row) -> bool:
        key = digest(json.dumps(row, sort_keys=True, default=str)) if self._section.deduplicate else b""
        if self._section.max_chars is not None and characters(row) > self._section.max_chars:
            self.why = f"longer than {self._section.max_chars} characters"
        elif key in self._seen:
            self.why = "duplicates"
        else:
            self._seen.update([key] if key else [])
            return True
        self._dropped[self.why] += 1
        return False


def first_rows(item: Item, limit: int) -> list[Item]:
    """Return a row, or a group with its first `limit` pairs."""
    number = itertools.count()
    return repeated(item, lambda row: next(number) < limit)


def characters(row: Row) -> int:
    """Count the characters of the longest text of a row: the prompt with one response."""

    def length(value: Any) -> int:
        if isinstance(value, list):
            return sum(length(message.get("content")) for message in value if isinstance(message, dict))
        return len(value) if isinstance(value, str) else 0  # a column of prompts may hold any type

    answers = [length(row.get(name)) for name in ("completion", "chosen", "rejected")]
    return length(row.get("prompt")) + length(row.get("messages")) + length(row.get("text")) + max(answers)
