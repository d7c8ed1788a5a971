"""What a chat draws: plain lines for scripts, columns in a terminal, and no control character of a model's text."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from rlhfctl.tools.chat.conversation import Answer
from rlhfctl.tools.chat.screen import PlainScreen, TerminalScreen, open_screen, read_text, side_by_side


def lines_of(*lines: str) -> Callable[[str], str]:
    given: Iterator[str] = iter(lines)

    def line(prompt: str) -> str:
        asked.append(prompt)
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    asked: list[str] = []
    line.asked = asked  # type: ignore[attr-defined]
    return line


def test_a_text_of_several_lines_stands_between_triple_quotes() -> None:
    line = lines_of("hi", '"""', "  one", "", 'two"""', '"""all on one"""', '"""a', '"""', '"""')
    assert read_text(line, "you> ") == "hi"
    assert read_text(line, "you> ") == "  one\n\ntwo"
    assert line.asked[1:5] == ["you> ", "...  ", "...  ", "...  "]  # type: ignore[attr-defined]
    assert read_text(line, "") == "all on one"
    assert read_text(line, "") == "a"
    with pytest.raises(EOFError):
        read_text(line, "")
    assert set(line.asked[5:]) == {""}  # type: ignore[attr-defined]


ANSWERS = [Answer("ppo", "one two", 2, True, score=0.5), Answer("sft", "three", 1, False, score=-1.0)]


def test_plain_lines_hold_the_answer_as_it_grows() -> None:
    out = io.StringIO()
    screen = PlainScreen(out, interactive=False, line=lines_of("hi"))
    assert screen.read() == "hi"
    screen.note("nothing of this")
    with screen.answering(["ppo"]) as show:
        for text in ("", "one", "one two", "one \x1b[31mtwo", "one two"):
            show(0, text)
            if text == "one":
                assert out.getvalue() == "ppo: one"
    screen.answered(ANSWERS[:1])
    assert out.getvalue() == "ppo: one two\n  (score 0.5, 2 tokens)\n"


def test_a_person_at_a_plain_terminal_is_told_notes() -> None:
    out = io.StringIO()
    screen = PlainScreen(out, interactive=True, line=lines_of("hi"))
    assert screen.read() == "hi"
    screen.note("temperature 1")
    assert out.getvalue() == "temperature 1\n"


def test_errors_of_plain_screens_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    PlainScreen(io.StringIO(), interactive=True).error("it failed")
    assert capsys.readouterr().err == "it failed\n"


def terminal(width: int = 80, height: int = 24) -> tuple[TerminalScreen, Callable[[], str]]:
    out = io.StringIO()
    shown = Console(file=out, width=width, height=height, force_terminal=True, color_system="standard")
    return TerminalScreen(shown, lines_of("hi")), out.getvalue


def plain(text: str) -> list[str]:
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()]


def test_two_answers_stand_side_by_side_and_the_higher_score_is_marked() -> None:
    screen, drawn = terminal()
    screen.answered(ANSWERS)
    assert plain(drawn())[:3] == [
        "ppo                                     sft",
        "one two                                 three",
        "score 0.5, 2 tokens                     score -1, 1 token, cut at the longest",
    ]
    assert "\x1b[32mscore 0.5" in drawn() and "\x1b[2mscore -1" in drawn()


def test_one_answer_takes_the_whole_width() -> None:
    screen, drawn = terminal()
    screen.answered([Answer("ppo", "word " * 30, 30, True)])
    lines = plain(drawn())
    assert lines[0] == "ppo" and 70 < len(lines[1]) <= 80 and lines[3] == "30 tokens"
    screen, drawn = terminal()
    screen.answered([Answer("ppo", "", 1, True)])
    assert plain(drawn())[1] == "(empty)"


def test_a_growing_answer_that_is_higher_than_the_terminal_shows_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhfctl.tools.chat.screen._EVERY_S", 0.0)
    screen, drawn = terminal(height=10)
    with screen.answering(["ppo", "sft"]) as show:
        show(0, "".join(f"line {number}\n" for number in range(40)))
    rows = [line for line in plain(drawn()) if line]
    assert rows[-1] == "line 39" and len(set(rows)) == 7 and "line 32" not in rows
    assert "\x1b[?25h" in drawn()  # the cursor is back


def test_what_a_model_writes_is_shown_and_not_obeyed() -> None:
    screen, drawn = terminal()
    screen.answered([Answer("ppo", "a\x1b]0;owned\x07b\x1b[2Jc [bold]d[/bold]", 3, True)])
    assert r"a\x1b]0;owned\x07b\x1b[2Jc [bold]d[/bold]" in plain(drawn())[1]
    assert "\x1b]0" not in drawn() and "\x1b[2J" not in drawn()
    screen.error("bad \x1b[2J")
    assert "\x1b[2J" not in drawn()


def test_pipes_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = open_screen()
    assert isinstance(screen, PlainScreen) and not screen.interactive
    monkeypatch.setattr("sys.stdin", Terminal())
    assert isinstance(open_screen(), PlainScreen)
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    screen = open_screen()
    assert isinstance(screen, PlainScreen) and screen.interactive
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_screen(), TerminalScreen)


def test_a_text_that_scripts_read_too_is_shown_safely() -> None:
    out = io.StringIO()
    PlainScreen(out, interactive=False).show("[1] a\x1b[2J\nb")
    assert out.getvalue() == "[1] a\\x1b[2J\nb\n"
    screen, drawn = terminal()
    screen.show("[1] a\x1b[2J\nb")
    assert plain(drawn()) == ["[1] a\\x1b[2J", "b"]


def test_a_text_to_be_edited_stands_in_the_line() -> None:
    """In a terminal of its own: readline writes into it what stands in the line, then what is typed."""
    program = (
        "from rich.console import Console; from rlhfctl.tools.chat.screen import TerminalScreen; "
        "screen = TerminalScreen(Console()); print([screen.read('edit> ', 'old'), screen.read('> ')])"
    )
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    os.write(descriptor, b" and new\nnext\n")
    said = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the process ends
        while part := os.read(descriptor, 1000):
            said += part
    os.waitpid(pid, 0)
    assert b"['old and new', 'next']" in said, said


def test_columns_share_the_width() -> None:
    console = Console(width=40, color_system=None)
    with console.capture() as capture:
        console.print(side_by_side(["left", "right"], ["a " * 30, "b"], ["", ""]))
    rows = capture.get().splitlines()
    assert len(rows) >= 4 and all(len(row) <= 40 for row in rows) and rows[1].index("b") == 20
