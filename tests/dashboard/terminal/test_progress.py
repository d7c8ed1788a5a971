"""The progress bar of long work: drawn on a terminal, silent in pipes."""

from __future__ import annotations

import io
import sys

import pytest

from rlhfctl.dashboard.terminal.progress import progress_bar
from rlhfctl.events import Note, Working


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def work(done: int, *, over: bool = False) -> Working:
    return Working(stage="score", what="scoring", done=done, total=64, unit="response", seconds=1.0, over=over)


def drawn_into(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar() as emit:
        emit(Note(stage="score", message="other events are not drawn"))
        emit(work(0))
        emit(work(16))
        emit(work(64, over=True))
        emit(work(0))  # the same work again, after its end
    return stream.getvalue()


def test_a_terminal_shows_what_is_done_and_of_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn_into(Terminal(), monkeypatch)
    assert "scoring" in text and "/64" in text
    assert "other events" not in text


def test_work_that_cannot_be_counted_shows_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar() as emit:
        emit(Working(stage="chat", what="loading", done=0, total=None, unit="", seconds=1.0))
    assert "loading" in stream.getvalue() and "None" not in stream.getvalue()


def test_pipes_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn_into(io.StringIO(), monkeypatch) == ""
