"""Keep labels in one SQLite file with an append-only table of events: a label is on disk before it is acknowledged.

    event   what an annotator did: label, skip, note, undo; never changed, never deleted (triggers refuse it)
    item    the texts that the events are about, so that the file can be exported without anything else

Reads and writes labels.sqlite (write-ahead log, synchronous FULL). Each event has a key of its own: a click that
arrives twice counts once. Several processes may write at once. Leaves out what the events amount to (answers.py).
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.items import Item, item_of

Kind = Literal["label", "bad", "skip", "note", "undo"]

IMPORTED = "imported"  # the judge of labels that were read from a file

WRITTEN = "write-"  # begins the key of a label that a person gave while writing a conversation (`label --write`)

_VERSION = 1  # of the tables
_TABLES = """
CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (
  number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, time REAL NOT NULL, kind TEXT NOT NULL,
  item TEXT NOT NULL REFERENCES item (id), annotator TEXT NOT NULL, judge TEXT NOT NULL, ranks TEXT, shown TEXT,
  origins TEXT, seconds REAL, note TEXT, undoes INTEGER
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events stay as they are'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'events stay'); END;
"""
_COLUMNS = "number, key, time, kind, item, annotator, judge, ranks, shown, origins, seconds, note, undoes"
_BUSY_S = 30.0


@dataclass(frozen=True)
class Event:
    """One thing that an annotator did.

    `kind`: label (with `ranks`; equal ranks are a tie), bad (all responses are bad), skip, note, or undo, which takes
    back the event with the number `undoes`. `ranks`: per response in the order of the item, 0 is best. `shown`: the
    responses in the order on the screen, as places in the item. `origins`: who wrote each, in the order of the item.
    `judge`: what kind of annotator it is (people, builtin, endpoint, function). `time` is in seconds since 1970,
    `seconds` is how long the question was looked at. `number` is 0 until the event is stored.
    """

    key: str
    kind: Kind
    item: str
    annotator: str
    judge: str = "people"
    ranks: tuple[int, ...] | None = None
    shown: tuple[int, ...] | None = None
    origins: tuple[str, ...] | None = None
    seconds: float | None = None
    note: str | None = None
    undoes: int | None = None
    time: float = 0.0
    number: int = 0

    @property
    def is_of_people(self) -> bool:
        """Whether a person answered a question of a labelling set, here or in a file that was read."""
        return self.judge in ("people", IMPORTED) and not self.is_written

    @property
    def is_written(self) -> bool:
        """Tell whether a person gave this label while writing a conversation, and not as the answer to a question."""
        return self.key.startswith(WRITTEN)


class LabelStore:
    """The labels of a run or of a file. Safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.path = path

    def keep_items(self, items: Iterable[Item]) -> None:
        """Keep the texts of items; those that are there already stay as they are."""
        rows = [(item.id, json.dumps(item.as_row(), ensure_ascii=False)) for item in items]
        with self._lock, _told(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR IGNORE INTO item VALUES (?, ?)", rows)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def items(self) -> list[Item]:
        """Return all items that are kept, by id."""
        with self._lock, _told(self.path):
            rows = self._connection.execute("SELECT content FROM item ORDER BY id").fetchall()
        return [item_of(json.loads(content)) for (content,) in rows]

    def add(self, event: Event) -> tuple[Event, bool]:
        """Store an event, and return it with its number and whether it is new.

        It is on disk when this returns. An event whose key is there already is not stored again: the first is returned.
        """
        values = (
            event.key,
            event.time or time.time(),
            event.kind,
            event.item,
            event.annotator,
            event.judge,
            *(None if value is None else json.dumps(value) for value in (event.ranks, event.shown, event.origins)),
            event.seconds,
            event.note,
            event.undoes,
        )
        names, marks = _COLUMNS.partition(", ")[2], ", ".join("?" * len(values))
        with self._lock, _told(self.path):
            added = self._connection.execute(
                f"INSERT INTO event ({names}) VALUES ({marks}) ON CONFLICT (key) DO NOTHING", values
            ).rowcount
            row = self._connection.execute(f"SELECT {_COLUMNS} FROM event WHERE key = ?", (event.key,)).fetchone()
        return _event(row), bool(added)

    def events(self, after: int = 0) -> list[Event]:
        """Return the events with a number above `after`, in order."""
        with self._lock, _told(self.path):
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM event WHERE number > ? ORDER BY number", (after,)
            ).fetchall()
        return [_event(row) for row in rows]


def _event(row: tuple[object, ...]) -> Event:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    made = Event(**values)  # type: ignore[arg-type]
    lists = {name: _read(values[name]) for name in ("ranks", "shown", "origins")}
    return replace(made, **lists)  # type: ignore[arg-type]


def _read(text: object) -> tuple[object, ...] | None:
    return None if text is None else tuple(json.loads(str(text)))


@contextmanager
def open_labels(path: Path, *, create: bool = True) -> Iterator[LabelStore]:
    """Open the labels at `path`, and close them at the end; RlhfctlError if the file cannot be used.

    `create`: make the file where it is not there; without it a missing file is an error.
    """
    if not create and not path.is_file():
        raise RlhfctlError("there are no labels yet", where=str(path), fix="give some first: rlhfctl label RUN_OR_FILE")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _told(path):
        # Each statement is a transaction of its own, and threads share the connection behind a lock.
        connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        with _told(path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"it has version {version}, this rlhfctl reads {_VERSION}")
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        yield LabelStore(connection, path)
    finally:
        connection.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into one that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        if "disk" in str(error) and "full" in str(error):
            raise fs.disk_full(path) from error
        if "locked" in str(error):
            raise RlhfctlError(
                f"another program has held the file of labels for {_BUSY_S:g} seconds",
                where=str(path),
                fix="end what holds it (a backup, a database browser), then try again",
            ) from error
        raise RlhfctlError(
            f"labels cannot be kept here: {error}",
            where=str(path),
            fix="name another file, or move this one away if it is not one of rlhfctl's",
        ) from error
