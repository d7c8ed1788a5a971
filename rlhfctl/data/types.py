"""Define the types of data: a row, a group of ranked responses, checked rows with their locations, splits."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from rlhfctl.data.store import Locations, Picked, Store, Stored, pick

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

    def once(self) -> PreferenceGroup:
        """Return the group with each of its pairs once, also those that the weight of a source repeats."""
        return replace(self, comparisons=tuple(dict.fromkeys(self.comparisons)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache of pairs out of what is written to a file."""
        return self.__dict__ | {"views": {}}


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
    return [row for item in items for row in examples_of(item)]


def examples_of(item: Item) -> list[Row]:
    """Return the pairs of a group, or the row."""
    return pairs(item) if isinstance(item, PreferenceGroup) else [item]


def count_of(item: Item) -> int:
    """Count the pairs of a group; a row is one."""
    return len(item.comparisons) if isinstance(item, PreferenceGroup) else 1


def count_examples(items: Iterable[Item]) -> int:
    """Count the training examples: the pairs of groups, and other rows."""
    return sum(map(count_of, items))


class Pairs(Sequence[Row]):
    """The pairs of groups that lie in a file, one by one; a group is read when one of its pairs is asked for."""

    def __init__(self, groups: Sequence[PreferenceGroup]) -> None:
        self._groups, self._ends, count = groups, array("q"), 0
        for group in groups:
            count += count_of(group)
            self._ends.append(count)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return pick(self, range(len(self))[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        group = bisect.bisect_right(self._ends, place)
        return pairs(self._groups[group])[place - (self._ends[group - 1] if group else 0)]

    def __iter__(self) -> Iterator[Row]:
        return (pair for group in self._groups for pair in pairs(group))


def repeated(item: Item, times: Callable[[Row], int]) -> list[Item]:
    """Return a row as often as `times` says, or a group with each of its pairs as often as `times` says."""
    return [*item.repeated(times)] if isinstance(item, PreferenceGroup) else [item] * times(item)


@dataclass(frozen=True)
class Rows:
    """The checked rows of a data set, and the fingerprint of their source.

    `items` are the rows: groups for preferences, dictionaries for the other data sets; a list, or many in a file
    (store.py). Preferences are counted, dropped, limited and shown in pairs, which are `rows`. The fingerprint is that
    of the source's files (or of a built-in source's own rows); if data.leaks: drop removed rows, it includes that of
    the rows or pairs that remain.
    """

    name: str
    items: Sequence[Item]
    fingerprint: str
    notes: tuple[str, ...] = ()  # sentences about dropped and changed rows
    # The items by part; heldout has each pair once.
    split: DemonstrationSplit | PreferenceSplit | PromptSplit | None = None
    locations: Sequence[str] = ()  # "file:line" of each item, in the order of `items`
    left_out: Mapping[str, str] = field(default_factory=dict)  # "file:line" of a line that gives no row -> reason
    droppable: Sequence[int] = b""  # per item 1 if its source has bad_rows: drop, else 0; empty: no source has
    places: Mapping[str, Sequence[int]] = field(default_factory=dict)  # part of the split -> its places in `items`

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The rows one by one; the pairs of preferences."""
        if isinstance(self.items, Stored | Picked):
            return Pairs(self.items) if isinstance(self.items[0], PreferenceGroup) else self.items
        return examples(self.items)

    @property
    def demonstrations(self) -> DemonstrationSplit:
        """The demonstrations to train on, and those that are held out; all of them are to train on without a split."""
        return self.split if isinstance(self.split, DemonstrationSplit) else DemonstrationSplit(self.rows, [])

    @property
    def groups(self) -> Sequence[PreferenceGroup]:
        """The groups of preferences."""
        if isinstance(self.items, Stored | Picked):
            return self.items if isinstance(self.items[0], PreferenceGroup) else []
        return [item for item in self.items if isinstance(item, PreferenceGroup)]

    @property
    def located(self) -> Iterator[tuple[Item, str]]:
        """Each item with its location."""
        return zip(self.items, self.locations, strict=True)

    @property
    def located_rows(self) -> Iterator[tuple[Row, str]]:
        """Each of `rows` with its location."""
        return ((row, location) for item, location in self.located for row in examples_of(item))

    def only(self, keep: Callable[[int, Row], bool], **changes: Any) -> Rows:
        """Return the rows for which `keep` holds of their place in `rows` and of themselves, with their locations.

        The split keeps the same rows. `changes` replace other fields.
        """
        items: Store[Item] = Store()
        moved = array("q")  # per item its new place, -1 if no row of it is left
        first = 0
        for item in self.items:
            places = iter(range(first, first + count_of(item)))
            kept = repeated(item, lambda row, places=places: keep(next(places), row))  # type: ignore[misc]
            first += count_of(item)
            moved.append(len(items) if kept else -1)
            items.extend(kept)
        left = array("q", (place for place, new in enumerate(moved) if new >= 0))
        parts = {
            name: array("q", (moved[place] for place in part if moved[place] >= 0))
            for name, part in self.places.items()
        }
        return replace(
            self,
            items=items.items(),
            locations=Locations(self.locations[place] for place in left) if self.locations else (),
            droppable=bytes(self.droppable[place] for place in left) if self.droppable else b"",
            **{"places": parts}
            | ({} if self.split is None else {"split": self.split.of(items.items(), parts)})
            | changes,
        )


@dataclass(frozen=True)
class DemonstrationSplit:
    """Demonstrations for training, and those of held-out prompts."""

    train: Sequence[Row]
    heldout: Sequence[Row]

    @staticmethod
    def of(rows: Sequence[Any], places: Mapping[str, Sequence[int]]) -> DemonstrationSplit:
        """Make the split of `rows` whose parts stand at `places`."""
        return DemonstrationSplit(pick(rows, places["train"]), pick(rows, places["heldout"]))


@dataclass(frozen=True)
class PreferenceSplit:
    """Groups of preferences for training, and groups of held-out prompts."""

    train: Sequence[PreferenceGroup]
    heldout: Sequence[PreferenceGroup]

    @staticmethod
    def of(groups: Sequence[Any], places: Mapping[str, Sequence[int]]) -> PreferenceSplit:
        """Make the split of `groups` whose parts stand at `places`."""
        return PreferenceSplit(pick(groups, places["train"]), once(pick(groups, places["heldout"])))


@dataclass(frozen=True)
class PromptSplit:
    """Prompts for training, for evaluation during PPO, and for the verdict."""

    train: Sequence[Row]
    eval: Sequence[Row]
    test: Sequence[Row]

    @staticmethod
    def of(rows: Sequence[Any], places: Mapping[str, Sequence[int]]) -> PromptSplit:
        """Make the split of `rows` whose parts stand at `places`."""
        return PromptSplit(**{name: pick(rows, places[name]) for name in ("train", "eval", "test")})


def once(groups: Sequence[PreferenceGroup]) -> Sequence[PreferenceGroup]:
    """Return the groups with each of their pairs once."""
    found: Store[PreferenceGroup] = Store()
    found.extend(group.once() for group in groups)
    return found.items()
