"""The types that data is passed in: a row, a group of ranked responses, checked rows with their locations, splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

Row = dict[str, Any]
Prompt = str | list[dict[str, Any]]
Comparison = tuple[int, int]  # (better, worse): indices of a group's responses


class BadRow(Exception):
    """Say what is wrong with a row that cannot be used; load.py adds its location, and counts or reports it."""


@dataclass(frozen=True)
class PreferenceGroup:
    """Rank K responses to one prompt: a row of preferences. A file's chosen and rejected are a group of two.

    Ranks are kept, not scores: the scores of two files, or of two people, have no common unit. `comparisons` are the
    pairs to train on, in their order. They are all that are not tied, but for pairs that were left out (too long,
    repeated, beyond the limit, refused by the chat template). A source's weight repeats them.
    """

    prompt: Prompt
    responses: tuple[Prompt, ...]  # K >= 2, in the order of the source
    ranks: tuple[int, ...]  # of each response: 0 is best, tied responses have equal ranks
    comparisons: tuple[Comparison, ...]
    margin: float | None = None  # how far the better response of each pair must win; files state it for pairs
    tools: list[dict[str, Any]] | None = None  # functions that the chat template writes out
    views: dict[Comparison, Row] = field(default_factory=dict, compare=False, repr=False)  # what `pairs` made before

    def repeated(self, times: Callable[[Row], int]) -> list[PreferenceGroup]:
        """Return the group with each pair as often as `times` says; an empty list where no pair is left."""
        counted = zip(self.comparisons, pairs(self), strict=True)
        kept = tuple(comparison for comparison, pair in counted for _ in range(times(pair)))
        return [replace(self, comparisons=kept)] if kept else []


def pairs(group: PreferenceGroup) -> list[Row]:
    """Return the comparisons of a group as rows of prompt, chosen and rejected, with margin and tools where it has any.

    A comparison is always the same object, also in a copy of the group: rows are told apart by their identity.
    """
    return [group.views.setdefault(comparison, _pair(group, comparison)) for comparison in group.comparisons]


def _pair(group: PreferenceGroup, comparison: Comparison) -> Row:
    better, worse = comparison
    row: Row = {"prompt": group.prompt, "chosen": group.responses[better], "rejected": group.responses[worse]}
    row |= {} if group.margin is None else {"margin": group.margin}
    return row | ({} if group.tools is None else {"tools": group.tools})


Item = Row | PreferenceGroup


def examples(items: Iterable[Item]) -> list[Row]:
    """Return what a stage learns from one by one: the pairs of groups, and other rows as they are."""
    return [row for item in items for row in (pairs(item) if isinstance(item, PreferenceGroup) else [item])]


def repeated(item: Item, times: Callable[[Row], int]) -> list[Item]:
    """Return a row as often as `times` says, or a group with each of its pairs as often as that."""
    return [*item.repeated(times)] if isinstance(item, PreferenceGroup) else [item] * times(item)


@dataclass(frozen=True)
class Rows:
    """Checked rows and the fingerprint of where they came from.

    `items` are the rows: groups for preferences, dictionaries for the other data sets. All that is counted, dropped,
    limited or shown of preferences is counted in pairs, which are `rows`. The fingerprint is that of the source's files
    (or of a built-in source's own rows); where data.leaks: drop left rows out, also that of the pairs that remain.
    """

    name: str
    items: Sequence[Item]
    fingerprint: str
    notes: tuple[str, ...] = ()  # sentences about what was dropped or made
    split: PreferenceSplit | PromptSplit | None = None  # holds the very rows, or pairs of the groups, that `rows` holds
    locations: tuple[str, ...] = ()  # "file:line" of each item, in the order of `items`
    left_out: Mapping[str, str] = field(default_factory=dict)  # "file:line" of each that gives no row -> why
    droppable: frozenset[str] = frozenset()  # "file:line" of those whose source has bad_rows: drop

    @cached_property
    def rows(self) -> list[Row]:
        """The rows one by one; the pairs of preferences."""
        return examples(self.items)

    @property
    def groups(self) -> list[PreferenceGroup]:
        """The rows of preferences."""
        return [item for item in self.items if isinstance(item, PreferenceGroup)]

    @property
    def located(self) -> list[tuple[Item, str]]:
        """Each item with its location."""
        return list(zip(self.items, self.locations, strict=True))

    @cached_property
    def _location_by_identity(self) -> dict[int, str]:
        return {id(row): location for item, location in self.located for row in examples([item])}

    def location_of(self, row: Row) -> str:
        """Say where one of `rows` (or of the split's rows) came from, as "file:line"."""
        return self._location_by_identity[id(row)]

    def only(self, keep: Callable[[Row], bool], **changes: Any) -> Rows:
        """Return the rows for which `keep` holds, with their locations; `changes` replace other fields."""
        kept = [(part, place) for item, place in self.located for part in repeated(item, keep)]
        return replace(self, items=[part for part, _ in kept], locations=tuple(place for _, place in kept), **changes)


@dataclass(frozen=True)
class PreferenceSplit:
    train: list[PreferenceGroup]
    heldout: list[PreferenceGroup]


@dataclass(frozen=True)
class PromptSplit:
    train: list[Row]
    eval: list[Row]
    test: list[Row]
