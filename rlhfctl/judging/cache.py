"""Keep a judge's answers in one SQLite file, so that no question is asked twice in a run.

Reads and writes `judge-cache.sqlite` in the run folder: an answer is there as soon as it has come, so a killed
comparison continues without asking again, and a changed one asks only what is new. It holds hashes of questions and
the answers, no prompt, no response and no key.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhfctl.errors import RlhfctlError

_VERSION = 1  # of the table
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, text TEXT NOT NULL, finish TEXT, model TEXT, calls INTEGER NOT NULL, input_tokens INTEGER,
  output_tokens INTEGER, time REAL NOT NULL
) WITHOUT ROWID
"""
_BUSY_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What a judge said to one question: the text, why it ended, and the tokens of all `calls` that it took.

    `model`: the name that the server gave. Numbers of tokens are None where the server does not count them.
    """

    text: str
    finish: str | None = None
    model: str | None = None
    calls: int = 1
    input_tokens: int | None = None
    output_tokens: int | None = None


class AnswerCache:
    """The answers of a run by the key of their question."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def get(self, key: str) -> Answer | None:
        """Return the answer to a question; None if it was not asked yet."""
        columns = "text, finish, model, calls, input_tokens, output_tokens"
        row = self.connection.execute(f"SELECT {columns} FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer(*row) if row is not None else None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        row = (key, answer.text, answer.finish, answer.model, answer.calls, answer.input_tokens, answer.output_tokens)
        self.connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, time.time()))


@contextmanager
def open_cache(path: Path) -> Iterator[AnswerCache]:
    """Open the cache at `path`, and close it at the end; RlhfctlError if the file cannot be used as one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)  # each statement is a transaction
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"it has version {version}, this rlhfctl reads {_VERSION}")
        connection.execute(_TABLE)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        yield AnswerCache(connection)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    finally:
        connection.close()


def _unusable(path: Path, error: sqlite3.Error) -> RlhfctlError:
    return RlhfctlError(
        f"the judge's answers cannot be kept here: {error}",
        where=str(path),
        fix="free some space if the disk is full; else move the file away: the questions in it are asked again",
    )
