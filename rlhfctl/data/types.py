"""The types that data is passed in: a row, a prompt, checked rows with their locations, and how they are split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

Row = dict[str, Any]
Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """Checked rows and the fingerprint of where they came from."""

    name: str
    rows: list[Row]
    fingerprint: str
    notes: tuple[str, ...] = ()  # sentences about what was dropped or made
    split: PreferenceSplit | PromptSplit | None = None  # holds the very objects that `rows` holds
    locations: tuple[str, ...] = ()  # "file:line" of each row, in the order of `rows`
    left_out: Mapping[str, str] = field(default_factory=dict)  # "file:line" of each that gives no row -> why
    droppable: frozenset[str] = frozenset()  # "file:line" of those whose source has bad_rows: drop

    @property
    def located(self) -> list[tuple[Row, str]]:
        """Each row with its location."""
        return list(zip(self.rows, self.locations, strict=True))

    @cached_property
    def _location_by_identity(self) -> dict[int, str]:
        return {id(row): location for row, location in self.located}

    def location_of(self, row: Row) -> str:
        """Say where one of `rows` (or of the split's rows) came from, as "file:line"."""
        return self._location_by_identity[id(row)]

    def only(self, keep: Callable[[Row], bool], **changes: Any) -> Rows:
        """Return the rows for which `keep` holds, with their locations; `changes` replace other fields."""
        kept = [(row, place) for row, place in self.located if keep(row)]
        return replace(self, rows=[row for row, _ in kept], locations=tuple(place for _, place in kept), **changes)


@dataclass(frozen=True)
class PreferenceSplit:
    train: list[Row]
    heldout: list[Row]


@dataclass(frozen=True)
class PromptSplit:
    train: list[Row]
    eval: list[Row]
    test: list[Row]
