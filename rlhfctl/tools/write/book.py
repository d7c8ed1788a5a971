"""Keep what a person writes: the conversation under way after each step, and what becomes of it at its end.

    writing.json          the conversation under way, written anew in one step
    demonstrations.jsonl  one row per finished conversation, appended
    labels.sqlite         what the person said about suggestions

A conversation ends in four steps: its row and the place for it go into writing.json, its labels into the file of
labels, the row to the end of the demonstrations, and writing.json is removed. After a kill `open_book` does what is
left of this, so that a conversation is there once. One process at a time writes in a run.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.dashboard.text import counted
from rlhfctl.errors import RlhfctlError, RunBusyError
from rlhfctl.labels.store import open_labels
from rlhfctl.paths import RunPaths
from rlhfctl.tools.write.conversation import Conversation, conversation_of

_ENDINGS = (".jsonl", ".ndjson")
_ANOTHER = "name another file with --to: this one is left as it is"


@dataclass
class Book:
    """The files of a run that a person writes into. `to`: the file of demonstrations."""

    run: RunPaths
    to: Path
    annotator: str

    def under_way(self) -> Conversation | None:
        """Return the conversation that was under way; None if there is none."""
        state = self._state()
        return None if state is None else conversation_of(state["conversation"])

    def keep(self, conversation: Conversation) -> None:
        """Put the conversation on disk as it is now."""
        self._write({"conversation": conversation.as_dict()})

    def drop(self) -> None:
        """Forget the conversation under way."""
        self.run.writing.unlink(missing_ok=True)

    def finish(self, conversation: Conversation) -> str:
        """Keep a conversation as a demonstration and as labels; return a sentence about it."""
        row = json.dumps(conversation.demonstration(), ensure_ascii=False)
        line = f"{_line_end(self.to, conversation)}{row}\n"
        place = self.to.stat().st_size if self.to.exists() else 0
        ending: dict[str, Any] = {
            "to": str(self.to.resolve()),
            "place": place,
            "line": line,
            "annotator": self.annotator,
        }
        self._write({"conversation": conversation.as_dict(), "ending": ending})
        return self._end(conversation, **ending)

    def end_begun(self) -> str | None:
        """Finish the conversation whose end a kill interrupted; return a sentence, or None if there was none."""
        state = self._state()
        if state is None or "ending" not in state:
            return None
        return self._end(conversation_of(state["conversation"]), **state["ending"])

    def check(self, *, roles: bool) -> None:
        """Raise RlhfctlError if the file of demonstrations cannot take such conversations."""
        _line_end(self.to, Conversation("", roles))

    def _end(self, conversation: Conversation, to: str, place: int, line: str, annotator: str) -> str:
        labels = conversation.labels(annotator)
        if labels:
            with open_labels(self.run.labels) as store:
                store.keep_items(item for item, _ in labels)
                for _, event in labels:
                    store.add(event)
        _append_once(Path(to), place, line.encode())
        self.drop()
        turns = counted(len(conversation.answered), "turn")
        said = f", and {counted(len(labels), 'label')} to {self.run.labels}" if labels else ""
        file = self.to if self.to.resolve() == Path(to) else to
        return f"kept: a conversation of {turns} in {file}{said}"

    def _write(self, state: dict[str, Any]) -> None:
        fs.write_atomic(self.run.writing, json.dumps(state, ensure_ascii=False, indent=1) + "\n")

    def _state(self) -> dict[str, Any] | None:
        file = self.run.writing
        try:
            state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            conversation_of(state["conversation"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RlhfctlError(
                f"the conversation under way cannot be read: {error}", where=str(file), fix="move this file away"
            ) from error
        return state


@contextmanager
def open_book(run: RunPaths, to: Path | None, annotator: str) -> Iterator[Book]:
    """Open the files of a run for one person at a time; RunBusyError if another process writes there."""
    book = Book(run, to if to is not None else run.demonstrations, annotator)
    if book.to.suffix not in _ENDINGS:
        raise RlhfctlError(
            "demonstrations are written as JSON lines", where=str(book.to), fix="name a file that ends in .jsonl"
        )
    folder = os.open(run.root, os.O_RDONLY)  # a lock on the folder needs no file of its own
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(
                f"another process writes a conversation in {run.root}", fix="end that one first: /quit"
            ) from None
        book.to.parent.mkdir(parents=True, exist_ok=True)
        yield book
    finally:
        os.close(folder)


def _line_end(file: Path, conversation: Conversation) -> str:
    """Return the line end that the file lacks; RlhfctlError unless its last row is a demonstration of this kind."""
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        last = json.loads(text.strip().split("\n")[-1]) if text.strip() else None
    except OSError as error:
        raise RlhfctlError(f"cannot be read: {error.strerror}", where=str(file), fix=_ANOTHER) from error
    except ValueError as error:
        raise RlhfctlError("its last line is no JSON", where=str(file), fix=_ANOTHER) from error
    kinds = {True: {"messages"}, False: {"prompt", "completion"}}
    if last is not None and not (isinstance(last, dict) and kinds[conversation.roles] <= last.keys()):
        wanted = " and ".join(sorted(kinds[conversation.roles], reverse=True))
        raise RlhfctlError(f"its last row has no {wanted}, as this one would", where=str(file), fix=_ANOTHER)
    return "" if not text or text.endswith("\n") else "\n"


def _append_once(file: Path, place: int, line: bytes) -> None:
    """Append a line that belongs at `place`, unless it is there already, whole or in part."""
    try:
        there = file.read_bytes()[place:] if file.exists() else b""
        if there.startswith(line):
            return
        if line.startswith(there):
            fs.append(file, line[len(there) :])
        else:  # another program has appended meanwhile
            fs.append(file, line if there.endswith(b"\n") else b"\n" + line)
    except OSError as error:
        raise RlhfctlError(
            f"cannot be written: {error.strerror}", where=str(file), fix="make room for it, and give the command again"
        ) from error
