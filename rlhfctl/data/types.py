"""Define the types of data: a row, a group of ranked responses, checked rows with their locations, splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

Row = dict[str, Any]
Prompt = str | list[dict[str, Any]]
Comparison = tuple[int, int]  # (better, worse): indices of a group's responses


class BadRow(Exception):
    """Explain why a row cannot be used; load.py adds its location, and counts or reports it."""


@dataclass(frozen=True)
class PreferenceGroup:
    """A row of preferences: K ranked responses to one prompt. Chosen and rejected of a file are a group of two.

    Ranks are kept, not scores: the scores of two files, or of two people, have no common unit. `comparisons` are the
    pairs to train on, in order: all pairs that are not tied, except pairs that were left out (too long, repeated,
    beyond the limit, refused by the chat template). A source's weight repeats them.
    """

    prompt: Prompt
    responses: tuple[Prompt, ...]  # K >= 2, in the order of the source
    ranks: tuple[int, ...]  # per response: 0 is best, tied responses have equal ranks
    comparisons: tuple[Comparison, ...]
    margin: float | None = None  # by how much the better response of each pair must win; files state it for pairs
    tools: list[dict[str, Any]] | None = None  # functions that the chat template writes out
    views: dict[Comparison, Row] = field(default_factory=dict, compare=False, repr=False)  # the cache of `pairs`

    def repeated(self, times: Callable[[Row], int]) -> list[PreferenceGroup]:
        """Return the group with each pair as often as `times` says; an empty list if no pair is left."""
        counted = zip(self.comparisons, pairs(self), strict=True)
        kept = tuple(comparison for comparison, pair in counted for _ in range(times(pair)))
        return [replace(self, comparisons=kept)] if kept else []


def pairs(group: PreferenceGroup) -> list[Row]:
    """Return the comparisons of a group as rows of prompt, chosen and rejected, with margin and tools if it has them.

    A comparison is always the same object, also in a copy of the group: rows are identified by object identity.
    """
    return [group.views.setdefault(comparison, _pair(group, comparison)) for comparison in group.comparisons]


def _pair(group: PreferenceGroup, comparison: Comparison) -> Row:
    better, worse = comparison
    row: Row = {"prompt": group.prompt, "chosen": group.responses[better], "rejected": group.responses[worse]}
    row |= {} if group.margin is None else {"margin": group.margin}
    return row | ({} if group.tools is None else {"tools": group.tools})


Item = Row | PreferenceGroup


def examples(items: Iterable[Item]) -> list[Row]:
    """Return the training examples one by one: the pairs of groups, and other rows as they are."""
    return [row for item in items for row in (pairs(item) if isinstance(item, PreferenceGroup) else [item])]


def repeated(item: Item, times: Callable[[Row], int]) -> list[Item]:
    """Return a row as often as `times` says, or a group with each of its pairs as often as `times` says."""
    return [*item.repeated(times)] if isinstance(item, PreferenceGroup) else [item] * times(item)


@dataclass(frozen=True)
class Rows:
    """The checked rows of a data set, and the fingerprint of their source.

    `items` are the rows: groups for preferences, dictionaries for the other data sets. Preferences are counted,
    dropped, limited and shown in pairs, which are `rows`. The fingerprint is that of the source's files (or of a
    built-in source's own rows); if data.leaks: drop removed rows, it includes that of the rows or pairs that remain.
    """

    name: str
    items: Sequence[Item]
    fingerprint: str
    notes: tuple[str, ...] = ()  # sentences about dropped and changed rows
    split: PreferenceSplit | PromptSplit | None = None  # holds the same row objects, or pairs of the groups, as `rows`
    locations: tuple[str, ...] = ()  # "file:line" of each item, in the order of `items`
    left_out: Mapping[str, str] = field(default_factory=dict)  # "file:line" of each line that gives no row -> reason
    droppable: frozenset[str] = frozenset()  # "file:line" of the rows whose source has bad_rows: drop

    @cached_property
    def rows(self) -> list[Row]:
        """The rows one by one; the pairs of preferences."""
        return examples(self.items)

    @property
    def groups(self) -> list[PreferenceGroup]:
        """The groups of preferences."""
        return [item for item in self.items if isinstance(item, PreferenceGroup)]

    @property
    def located(self) -> list[tuple[Item, str]]:
        """Each item with its location."""
        return list(zip(self.items, self.locations, strict=True))

    @cached_property
    def _location_by_identity(self) -> dict[int, str]:
        return {id(row): location for item, location in self.located for row in examples([item])}

    def location_of(self, row: Row) -> str:
        """Return the location of one of `rows` (or of the split's rows) as "file:line"."""
        return self._location_by_identity[id(row)]

    def only(self, keep: Callable[[Row], bool], **changes: Any) -> Rows:
        """Return the rows for which `keep` holds, with their locations; `changes` replace other fields."""
        kept = [(part, location) for item, location in self.located for part in repeated(item, keep)]
        return replace(
            self, items=[part for part, _ in kept], locations=tuple(location for _, location in kept), **changes
        )


@dataclass(frozen=True)
class PreferenceSplit:
    """Groups of preferences for training, and groups of held-out prompts."""

    train: list[PreferenceGroup]
    heldout: list[PreferenceGroup]


@dataclass(frozen=True)
class PromptSplit:
    """Prompts for training, for evaluation during PPO, and for the verdict."""

    train: list[Row]
    eval: list[Row]
    test: list[Row]
