"""The file of labels: on disk before it returns, append-only, one event per key, several processes, errors in words."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.items import make_item
from rlhfctl.labels.store import Event, open_labels

ITEM = make_item("q", ["a", "b"], ["m", "n"])
EVENT = Event("k", "label", ITEM.id, "ana", ranks=(0, 1), shown=(1, 0), origins=("m", "n"), seconds=1.5, note="<b>")


def test_an_event_comes_back_as_it_was_given(tmp_path: Path) -> None:
    with open_labels(tmp_path / "l.sqlite") as store:
        store.keep_items([ITEM])
        stored, new = store.add(EVENT)
        assert new and stored.number == 1 and stored.time > 1.7e9
    with open_labels(tmp_path / "l.sqlite") as store:
        assert store.events() == [stored] and store.items() == [ITEM]
        assert store.events(after=1) == []
    assert (stored.ranks, stored.shown, stored.note, stored.judge) == ((0, 1), (1, 0), "<b>", "people")


def test_an_event_with_a_known_key_is_not_stored_again(tmp_path: Path) -> None:
    with open_labels(tmp_path / "l.sqlite") as store:
        store.keep_items([ITEM, ITEM])
        first, _ = store.add(EVENT)
        again, new = store.add(Event("k", "bad", ITEM.id, "ana"))
        assert again == first and not new and len(store.events()) == 1


def test_events_can_be_neither_changed_nor_deleted(tmp_path: Path) -> None:
    with open_labels(tmp_path / "l.sqlite") as store:
        store.keep_items([ITEM])
        store.add(EVENT)
    with sqlite3.connect(tmp_path / "l.sqlite") as connection:
        for statement in ("UPDATE event SET note = 'x'", "DELETE FROM event"):
            with pytest.raises(sqlite3.IntegrityError, match="events stay"):
                connection.execute(statement)


def test_the_file_is_written_through_before_a_label_is_acknowledged(tmp_path: Path) -> None:
    with open_labels(tmp_path / "l.sqlite") as store:
        (mode,), (level,) = (
            store._connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")
        )
        assert mode == "wal" and level == 2  # 2 is FULL


KILLED = """
import os, signal, sys
from rlhfctl.labels.items import make_item
from rlhfctl.labels.store import Event, open_labels
item = make_item("q", ["a", "b"], ["m", "n"])
with open_labels(sys.argv[1]) if False else open_labels(__import__("pathlib").Path(sys.argv[1])) as store:
    store.keep_items([item])
    for number in range(int(sys.argv[2])):
        store.add(Event(f"k{number}", "label", item.id, "ana", ranks=(0, 1)))
        print(number, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_every_label_that_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    for count in (1, 7):
        command = [sys.executable, "-c", KILLED, str(path), str(count)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == -9, said.stderr
        with open_labels(path) as store:
            assert len(store.events()) == count == len(said.stdout.split())


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("these are no labels, and long enough to be read as a file of SQLite" * 20)
    with pytest.raises(RlhfctlError, match="labels cannot be kept here"), open_labels(tmp_path / "text.sqlite"):
        pass
    with sqlite3.connect(tmp_path / "newer.sqlite") as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(RlhfctlError, match="version 9"), open_labels(tmp_path / "newer.sqlite"):
        pass
    with pytest.raises(RlhfctlError, match="no labels yet"), open_labels(tmp_path / "none.sqlite", create=False):
        pass
    with pytest.raises(RlhfctlError, match="FOREIGN KEY"), open_labels(tmp_path / "l.sqlite") as store:
        store.add(EVENT)  # its item is not kept


def test_a_file_that_another_program_holds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhfctl.labels.store._BUSY_S", 0.05)
    with open_labels(tmp_path / "l.sqlite") as store:
        store.keep_items([ITEM])
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RlhfctlError, match="another program has held the file of labels") as raised:
            store.add(EVENT)
        assert raised.value.fix is not None and "try again" in raised.value.fix
        other.execute("ROLLBACK")
        other.close()
        assert store.add(EVENT)[1]
