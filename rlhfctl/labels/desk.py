"""Hand out questions to annotators and take in their answers: the one place that all screens and judges use.

    items ──▶ next question ──▶ terminal, browser, judge ──▶ answer ──▶ store
                  ▲                                                      │
                  └────────────────── answers so far ────────────────────┘

An annotator gets each item once, in an order of responses of its own, and gets the same question again after a reload.
Some items are judged by several annotators, and some questions have a known answer (gold). Reads and writes the store.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhfctl.labels.answers import Answers, agreement
from rlhfctl.labels.items import Item
from rlhfctl.labels.store import Event, Kind, LabelStore
from rlhfctl.recipe.schema import Label

Order = Literal["file", "random", "active"]

LEASE_S = 900.0
"""How long a question that is open on one annotator's screen is kept from others."""


@dataclass(frozen=True)
class Settings:
    """How questions are handed out.

    `overlap`: share of the items that `annotators` different people judge; one person judges each other item.
    `gold`: share of the questions that have a known answer, as long as there are such items. `order`: that of the file,
    a random one, or the items first on which the reward ensemble disagrees most. `seed` fixes what is drawn.
    """

    overlap: float = 0.0
    annotators: int = 2
    gold: float = 0.0
    order: Order = "file"
    seed: int = 0

    @classmethod
    def of(cls, section: Label, seed: int) -> Settings:
        """Take the settings of a recipe's `label` section."""
        return cls(section.overlap, section.annotators, order=section.order, seed=seed)


@dataclass(frozen=True)
class Question:
    """An item on one annotator's screen. `order`: place on the screen -> place of the response in the item.

    `key` is that of the answer to come: two clicks on one question count once.
    """

    key: str
    item: Item
    order: tuple[int, ...]
    annotator: str

    @property
    def shown(self) -> list[object]:
        """The responses as they stand on the screen."""
        return [self.item.responses[place] for place in self.order]


@dataclass(frozen=True)
class Progress:
    """How far an annotator is. `left`: questions that this annotator may still get, as it stands now.

    `seconds_left`: at the annotator's own median speed; None before the first answer. `same` of `compared` answers
    equal those of others to the same items.
    """

    done: int
    left: int
    skipped: int
    seconds_left: float | None
    same: int
    compared: int


@dataclass(frozen=True)
class Refused(Exception):
    """An answer that cannot be taken, with a sentence for the annotator."""

    why: str

    def __str__(self) -> str:
        return self.why


@dataclass
class Desk:
    """Hand out the questions of one labelling set. Safe to use from several threads; several processes may share a set.

    `judge`: what kind of annotators they are; events record it. `accepts` tells which events of the store count.
    `clock` gives seconds, for tests.
    """

    items: Sequence[Item]
    store: LabelStore
    settings: Settings = field(default_factory=Settings)
    judge: str = "people"
    accepts: Callable[[Event], bool] = lambda event: True
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.answers = Answers()
        self._read = 0  # number of the last event that was read from the store
        self._lock = threading.RLock()
        self._open: dict[str, tuple[str, float]] = {}  # annotator -> (item on the screen, since when)
        self._back: dict[str, list[str]] = {}  # annotator -> items that undo has brought back
        self._full: set[str] = set()  # items that need no more answers
        self._by_id = {item.id: item for item in self.items}
        self._queue = [item.id for item in _ordered(self.items, self.settings) if item.gold is None]
        self._gold = [item.id for item in self.items if item.gold is not None]
        rng = random.Random(f"overlap {self.settings.seed}")
        shuffled = rng.sample(self._queue, len(self._queue))
        self._shared = set(shuffled[: round(self.settings.overlap * len(shuffled))])
        self.store.keep_items(self.items)
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have stored since."""
        with self._lock:
            new = self.store.events(self._read)
            self._read = new[-1].number if new else self._read
            counted = [event for event in new if self.accepts(event)]
            self.answers.add(counted)
            for item in {event.item for event in counted}:
                is_full = len(self.answers.judged(item)) >= self._wanted(item)
                (self._full.add if is_full else self._full.discard)(item)

    # ------------------------------------------------------------ questions

    def next(self, annotator: str) -> Question | None:
        """Return the question on this annotator's screen, or the next one; None if there is none for now."""
        with self._lock:
            self.refresh()
            found = self._current(annotator) or self._choose(annotator)
            if found is None:
                self._open.pop(annotator, None)
                return None
            since = self._open[annotator][1] if self._open.get(annotator, ("",))[0] == found else self.clock()
            self._open[annotator] = found, since
            return self._question(annotator, found)

    def next_of(self, annotator: str, count: int) -> list[Question]:
        """Return up to `count` questions at once, for a judge that answers in batches; none of them is kept for it."""
        with self._lock:
            self.refresh()
            return [self._question(annotator, item) for item in self._waiting(annotator)[:count]]

    def _current(self, annotator: str) -> str | None:
        """Return the item that is open on the annotator's screen and not answered."""
        item = self._open.get(annotator, ("", 0.0))[0]
        return item if item and annotator not in self.answers.of(item) else None

    def _choose(self, annotator: str) -> str | None:
        back = self._back.get(annotator, [])
        while back:
            item = back.pop()
            if annotator not in self.answers.of(item):
                return item
        if self._gold_is_due(annotator):
            fresh = [item for item in self._gold if annotator not in self.answers.of(item)]
            if fresh:
                return fresh[_number(self.settings.seed, annotator, "gold") % len(fresh)]
        waiting = self._waiting(annotator)
        # An item that another annotator has judged and that needs more answers comes before new ones.
        begun = next((item for item in waiting if self.answers.of(item) and self.answers.judged(item)), None)
        return begun or next(iter(waiting), None)

    def _gold_is_due(self, annotator: str) -> bool:
        given = len(self.answers.history.get(annotator, ()))
        return int((given + 1) * self.settings.gold) > int(given * self.settings.gold)

    def _waiting(self, annotator: str, *, held: bool = True) -> list[str]:
        """List the items that this annotator may get, in order: not judged by it, and not by enough others.

        With `held`, a question that is open on the screen of another counts as judged by it.
        """
        now = self.clock()
        on_screens = Counter(
            item
            for who, (item, since) in self._open.items()
            if held and who != annotator and now - since < LEASE_S and who not in self.answers.of(item)
        )
        # Each click comes here, and a set may have many thousand items: most are told apart by one or two look-ups.
        given, full = self.answers.by_item, self._full
        return [
            item
            for item in self._queue
            if item not in full
            and ((item not in on_screens and not given.get(item)) or self._has_room(annotator, item, on_screens[item]))
        ]

    def _has_room(self, annotator: str, item: str, held: int) -> bool:
        return annotator not in self.answers.of(item) and len(self.answers.judged(item)) + held < self._wanted(item)

    def _wanted(self, item: str) -> int:
        return self.settings.annotators if item in self._shared else 1

    def _question(self, annotator: str, item: str) -> Question:
        one = self._by_id[item]
        order = list(range(len(one.responses)))
        random.Random(f"{self.settings.seed} {item} {annotator}").shuffle(order)
        tries = self.answers.tries.get((annotator, item), 0)
        return Question(f"{item}-{_key(annotator, item, str(tries))}", one, tuple(order), annotator)

    # ------------------------------------------------------------ answers

    def answer(
        self,
        annotator: str,
        key: str,
        kind: Kind,
        ranks: Sequence[int] | None = None,
        note: str | None = None,
        seconds: float | None = None,
    ) -> Event:
        """Take in the answer to the open question, and return the event, which is on disk then.

        `key`: that of the question; it stays valid if the program was started again meanwhile. `ranks`: per place on
        the screen, 0 is best; equal ranks are a tie. An answer that arrives twice counts once. `seconds`: the time
        spent, where the screen measured it. Raises Refused for an answer that cannot be taken.
        """
        with self._lock:
            self.refresh()
            known = self._stored(annotator, key)
            if known is not None:
                return known
            item = key.partition("-")[0]
            question = self._question(annotator, item) if item in self._by_id else None
            if question is None or question.key != key:
                raise Refused("this question was answered or taken back already; the next one is shown")
            return self._take(question, kind, ranks, note, seconds)

    def _stored(self, annotator: str, key: str) -> Event | None:
        return next((one for one in reversed(self.answers.history.get(annotator, ())) if one.key == key), None)

    def _take(
        self, question: Question, kind: Kind, ranks: Sequence[int] | None, note: str | None, seconds: float | None
    ) -> Event:
        item, annotator = question.item, question.annotator
        if kind not in ("label", "bad", "skip"):
            raise Refused(f"{kind} is no answer")
        if (kind == "label") != (ranks is not None):
            raise Refused("a label needs ranks, and nothing else has them")
        if ranks is not None and (
            len(ranks) != len(item.responses) or min(ranks) != 0 or not all(type(rank) is int for rank in ranks)
        ):
            raise Refused(f"expected {len(item.responses)} ranks, 0 for the best")
        event, _ = self.store.add(
            Event(
                key=question.key,
                kind=kind,
                item=item.id,
                annotator=annotator,
                judge=self.judge,
                ranks=None if ranks is None else _in_item_order(ranks, question.order),
                shown=question.order,
                origins=item.origins,
                seconds=self._spent(annotator, item.id) if seconds is None else seconds,
                note=note or None,
            )
        )
        self._open.pop(annotator, None)
        self.refresh()
        return event

    def _spent(self, annotator: str, item: str) -> float | None:
        """Return the seconds since the item came onto the screen; None if that was before the program's start."""
        on_screen, since = self._open.get(annotator, ("", 0.0))
        return self.clock() - since if on_screen == item else None

    def note(self, annotator: str, item: str, text: str) -> None:
        """Keep a note of the annotator on an item; a later one replaces it."""
        with self._lock:
            key = _key(annotator, item, f"note {self._read} {text}")
            self.store.add(Event(key=key, kind="note", item=item, annotator=annotator, judge=self.judge, note=text))
            self.refresh()

    def undo(self, annotator: str, key: str | None = None) -> Question | None:
        """Take back the annotator's last answer, and return its question, which is open again; None without one.

        `key`: that of the answer to take back, as the screen knows it. If another one is the last now, nothing is
        taken back: two clicks on undo count once.
        """
        with self._lock:
            self.refresh()
            last = self.answers.last_of(annotator)
            if last is None or last.item not in self._by_id:
                return None
            if key is not None and last.key != key:
                return self.next(annotator)
            key = _key(annotator, last.item, f"undo {last.number}")
            event = Event(
                key=key, kind="undo", item=last.item, annotator=annotator, judge=self.judge, undoes=last.number
            )
            self.store.add(event)
            self.refresh()
            on_screen = self._open.pop(annotator, None)
            if on_screen is not None:
                self._back.setdefault(annotator, []).append(on_screen[0])  # it comes next again
            if annotator in self.answers.of(last.item):  # an older answer to the same item stands again
                return self.next(annotator)
            self._open[annotator] = last.item, self.clock()
            return self._question(annotator, last.item)

    # ------------------------------------------------------------ progress

    def progress(self, annotator: str) -> Progress:
        """Return how far an annotator is."""
        with self._lock:
            asked = {event.item for event in self.answers.history.get(annotator, ())} & self._by_id.keys()
            skipped = sum(1 for item in asked if self.answers.of(item)[annotator].kind == "skip")
            done = len(asked) - skipped
            left = len(self._waiting(annotator))
            speed = self.answers.seconds_of(annotator)
            same, compared = agreement(self.answers, annotator)
            return Progress(done, left, skipped, None if speed is None else speed * left, same, compared)

    def wanted_answers(self) -> int:
        """Count the answers that the set needs in all."""
        return sum(map(self._wanted, self._queue))

    def held_by_others(self, annotator: str) -> int:
        """Count the questions that this annotator would get if they were not open on the screens of others."""
        with self._lock:
            return len(self._waiting(annotator, held=False)) - len(self._waiting(annotator))

    def open_questions(self) -> int:
        """Count the answers that the set still needs from anybody: skips do not count as answers."""
        with self._lock:
            return sum(max(0, self._wanted(item) - len(self.answers.judged(item))) for item in self._queue)


def _ordered(items: Sequence[Item], settings: Settings) -> list[Item]:
    if settings.order == "random":
        return random.Random(f"order {settings.seed}").sample(list(items), len(items))
    if settings.order == "active":
        return sorted(items, key=lambda item: -(item.disagreement or 0.0))
    return list(items)


def _in_item_order(ranks: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Turn ranks per place on the screen into ranks per response of the item."""
    found = [0] * len(order)
    for place, rank in zip(order, ranks, strict=True):
        found[place] = rank
    return tuple(found)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _number(*parts: object) -> int:
    return int(_key(*map(str, parts))[:8], 16)
