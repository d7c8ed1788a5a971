"""Lines of a screen: cut, wrapped and paired by cells; bars and charts; signs that a terminal can show."""

from __future__ import annotations

import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rlhfctl.dashboard.terminal.draw import (
    ASCII,
    UNICODE,
    bar,
    beside,
    chart,
    ends,
    fit,
    rule,
    shown,
    signs_for,
    wrap,
)


def test_charts() -> None:
    assert chart([0, 1, 2, 3, 4, 5, 6, 7], (0, 7), 1, UNICODE) == ["▁▂▃▄▅▆▇█"]
    assert chart([0, 7.5, 15], (0, 15), 2, UNICODE) == [" ▁█", "▁██"]
    assert chart([1, 1], (1, 1), 1, UNICODE) == ["▄▄"]
    assert chart([0, 7], (0, 7), 1, ASCII) == ["_#"]
    assert chart([-1e308, 1e308], (-1e308, 1e308), 1, UNICODE) == ["▁▁"]  # a range beyond floats


def test_wrapping_counts_cells() -> None:
    assert wrap("音楽は優しくて", 6, 9, UNICODE) == ["音楽は", "優しく", "て"]
    assert wrap("one two three", 7, 9, UNICODE) == ["one two", "three"]
    assert wrap("one two three", 7, 1, UNICODE) == ["one tw…"]
    assert wrap("a\n\nb", 7, 9, UNICODE) == ["a", "", "b"]
    assert wrap("音", 1, 9, UNICODE) == ["音"]  # nothing narrower can be done; the frame cuts it


@pytest.mark.parametrize(
    ("width", "text"),
    [(9, "音楽 plot"), (8, "音楽 pl…"), (4, "音 …"), (3, "音…"), (2, " …"), (1, ""), (0, "")],
)
def test_a_line_is_cut_by_cells_and_says_so(width: int, text: str) -> None:
    line = fit(Text("音楽 plot"), width, UNICODE)
    assert cell_len(line.plain) <= width
    assert line.plain.rstrip() == text


def test_padding_fills_to_the_exact_width() -> None:
    assert fit(Text("音"), 5, UNICODE, pad=True).plain == "音   "
    assert fit(Text("abcdef"), 4, ASCII, pad=True).plain == "ab.."


def test_the_right_end_gives_way_to_the_left() -> None:
    assert ends(Text("left"), Text("right"), 14, UNICODE).plain == "left     right"
    assert ends(Text("a longer left"), Text("right"), 14, UNICODE).plain == "a long…  right"
    assert ends(Text("left"), Text("right"), 7, UNICODE).plain == "left"


def test_two_columns_may_have_different_heights() -> None:
    lines = beside([Text("one"), Text("two")], [Text("x")], 5, UNICODE)
    assert [line.plain for line in lines] == ["one   │ x", "two   │ "]
    assert [line.plain for line in beside([], [Text("x")], 2, ASCII)] == ["   | x"]


def test_a_rule_fills_the_width_and_a_long_title_is_cut() -> None:
    assert rule(Text("metrics"), 14, UNICODE).plain == "── metrics ───"
    assert rule(Text("metrics"), 8, UNICODE).plain == "── metr…"


@pytest.mark.parametrize(
    ("share", "filled"), [(0.0, 0), (0.5, 5), (0.99, 9), (1.0, 10), (7.0, 10), (-1.0, 0), (math.nan, 0)]
)
def test_a_bar_shows_a_share(share: float, filled: int) -> None:
    assert bar(share, 10, UNICODE, "cyan").plain == "━" * filled + "─" * (10 - filled)


def test_gaps_in_a_chart_are_empty() -> None:
    assert chart([0, None, 7], (0, 7), 1, UNICODE) == ["▁ █"]
    assert chart([None, 7], (0, 7), 2, ASCII) == [" #", " #"]


def test_text_is_shown_with_the_characters_of_the_terminal() -> None:
    assert shown("a\nb\x1b", UNICODE) == r"a\nb\x1b"
    assert shown("é音", ASCII) == r"\xe9\u97f3"
    assert shown("❤\ufe0f\u200d🔥", UNICODE) == "❤🔥"


def test_signs_are_ascii_where_the_terminal_has_no_others() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert signs_for(console, {"TERM": "xterm"}) is UNICODE
    assert signs_for(console, {"TERM": "linux"}) is ASCII
    assert signs_for(console, {"RLHFCTL_ASCII": "1"}) is ASCII
    assert signs_for(console, {}, ascii_only=True) is ASCII
    assert signs_for(Console(file=io.TextIOWrapper(io.BytesIO(), "ascii")), {"TERM": "xterm"}) is ASCII
