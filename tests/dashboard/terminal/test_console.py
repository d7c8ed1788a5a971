"""The console of commands: the width of a terminal, a fixed width elsewhere, and no colours added to numbers."""

from __future__ import annotations

import io
import sys

import pytest

from rlhfctl.dashboard.terminal.console import console


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_a_fixed_width_and_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "33")
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    screen = console()
    screen.print("123 [bold]words[/bold]")
    assert screen.width == 100
    assert pipe.getvalue() == "123 words\n"


def test_a_terminal_keeps_its_width_and_numbers_are_not_highlighted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COLUMNS", "33"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    screen = console()
    screen.print("123 words")
    assert screen.width == 33
    assert terminal.getvalue() == "123 words\n"
