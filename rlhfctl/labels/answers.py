"""Work out from events what each annotator says now about each item, what is undone, and how far the labelling is.

Pure: `Answers` is fed the events in order and keeps the last word of each annotator on each item.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from rlhfctl.labels.store import Event

LONGEST_THOUGHT_S = 600.0  # a question that was open for longer was left alone; it does not count as time spent


@dataclass
class Answers:
    """The last word of each annotator on each item, and the history that undo walks back.

    `by_item[item][annotator]` is an event of the kind label, bad or skip. `history[annotator]` lists what undo takes
    back next, oldest first. `tries[annotator, item]` counts the answers to an
    item, undone ones too: the next answer gets a new key.
    """

    by_item: dict[str, dict[str, Event]] = field(default_factory=dict)
    history: dict[str, list[Event]] = field(default_factory=dict)
    tries: dict[tuple[str, str], int] = field(default_factory=dict)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, events: Iterable[Event]) -> None:
        """Take in further events, in order."""
        for event in events:
            if event.kind == "undo":
                self._undo(event)
            elif event.kind == "note":
                self.notes[event.annotator, event.item] = event.note or ""
            else:
                self.by_item.setdefault(event.item, {})[event.annotator] = event
                self.history.setdefault(event.annotator, []).append(event)
                place = event.annotator, event.item
                self.tries[place] = self.tries.get(place, 0) + 1

    def _undo(self, event: Event) -> None:
        history = self.history.get(event.annotator, [])
        taken = next((one for one in reversed(history) if one.number == event.undoes), None)
        if taken is None:
            return
        history.remove(taken)
        given = self.by_item.get(taken.item, {})
        if given.get(event.annotator) is taken:
            before = [one for one in history if one.item == taken.item]
            given.pop(event.annotator)
            if before:
                given[event.annotator] = before[-1]

    def last_of(self, annotator: str) -> Event | None:
        """Return what undo would take back; None if there is nothing."""
        history = self.history.get(annotator)
        return history[-1] if history else None

    def of(self, item: str) -> Mapping[str, Event]:
        """Return the last word of each annotator on an item."""
        return self.by_item.get(item, {})

    def judged(self, item: str) -> dict[str, Event]:
        """Return the answers to an item that say something: labels and "all bad", no skips."""
        return {annotator: event for annotator, event in self.of(item).items() if event.kind != "skip"}

    def labels(self, items: Iterable[str]) -> list[Event]:
        """List the answers that say something about `items`, in the order of the items, then of time.

        The note of an annotator on an item, which may come before or after the label, stands in the label.
        """
        found = [event for item in items for event in sorted(self.judged(item).values(), key=lambda one: one.number)]
        notes = [self.notes.get((event.annotator, event.item)) for event in found]
        return [replace(one, note=note or one.note) for one, note in zip(found, notes, strict=True)]

    def seconds_of(self, annotator: str) -> float | None:
        """Return the median seconds that an annotator took per answer; None before the first."""
        spent = [event.seconds for event in self.history.get(annotator, ()) if event.seconds is not None]
        spent = [one for one in spent if one <= LONGEST_THOUGHT_S]
        return statistics.median(spent) if spent else None


def category(event: Event) -> str:
    """Return what an answer says, as one of few words, for statistics of agreement.

    The places of the best responses (`0`, `1`, `0 1`), `tie` if all are equal, `bad` if all are bad.
    """
    if event.kind == "bad":
        return "bad"
    ranks = event.ranks or ()
    if len(set(ranks)) == 1:
        return "tie"
    return " ".join(str(place) for place, rank in enumerate(ranks) if rank == min(ranks))


def agreement(answers: Answers, annotator: str) -> tuple[int, int]:
    """Count how often an annotator agrees with another on an item that both judged: (equal, all)."""
    same = total = 0
    for item in {event.item for event in answers.history.get(annotator, ())}:
        given = answers.of(item)
        own = given[annotator]
        if own.kind == "skip":
            continue
        for other, event in given.items():
            if other != annotator and event.kind != "skip":
                total += 1
                same += category(own) == category(event)
    return same, total


def pairs_of_annotators(answers: Answers, items: Iterable[str]) -> list[tuple[str, str]]:
    """List the pairs of annotators who judged at least one of `items` both."""
    found = {pair for item in items for pair in combinations(sorted(answers.judged(item)), 2)}
    return sorted(found)
