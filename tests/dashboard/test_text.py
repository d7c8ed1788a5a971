"""Text helpers: numbers, durations, settings and text from outside, as all views write them."""

from __future__ import annotations

import math

import pytest

from rlhfctl.dashboard.text import counted, duration, fixed, number, quoted, rounded_to, setting, short, visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.31, "2.31"),
        (9.1e-4, "9.1e-4"),
        (0.00123456, "0.001235"),
        (0.000123456, "1.235e-4"),
        (99999.6, "100000"),
        (123456.7, "123457"),
        (12345678.9, "1.235e7"),
        (12800.0, "12800"),
        (0.99999, "1"),
        (0.0, "0"),
        (-0.0, "0"),
        (-18.256, "-18.26"),
        (1e-30, "1e-30"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 725, 3600, 90061, -3, math.nan)] == [
        "0:00",
        "1:00",
        "12:05",
        "1:00:00",
        "25:01:01",
        "0:00",
        "-",
    ]


def test_text_of_others() -> None:
    assert visible("a\tb\r\nc\x07", newlines=True) == "a\tb\nc\\x07"
    assert visible("\u202eabc") == "\\u202eabc"
    assert visible("é 一 \u200d") == "é 一 \u200d"
    assert quoted('"') == r'"\""'
    assert [setting(v) for v in ("x", "", "a=b", {"r": 16}, float("nan"), 5e-5)] == [
        "x",
        '""',
        '"a=b"',
        '{"r":16}',
        "NaN",
        "5e-05",
    ]


def test_numbers_in_columns() -> None:
    assert [short(value) for value in (0.12345, 1234.6, 9999.4, 12345.6, 1234567.8)] == [
        "0.123", "1235", "9999", "12346", "1.235e6",
    ]  # fmt: skip
    assert [fixed(value, 2) for value in (0.5, -0.001, 12.345, 123456.7, math.nan)] == [
        "0.50", "0.00", "12.35", "123457", "nan",
    ]  # fmt: skip
    assert [fixed(value, 2, sign=True) for value in (0.5, -0.5, 0.001)] == ["+0.50", "-0.50", "0.00"]


def test_the_ends_of_a_range_have_the_digits_that_its_span_needs() -> None:
    assert [rounded_to(value, 10.0) for value in (12.3456, -0.004)] == [12.3, 0.0]
    assert rounded_to(0.123456, 0.01) == 0.1235
    assert rounded_to(0.123456, 0.0) == 0.123456 and rounded_to(0.1, math.inf) == 0.1


def test_counts() -> None:
    assert [counted(count, "alarm") for count in (0, 1, 2)] == ["no alarms", "1 alarm", "2 alarms"]
