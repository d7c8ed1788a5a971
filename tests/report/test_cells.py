"""Numbers as cells of tables."""

from __future__ import annotations

from rlhfctl.report.cells import p_value, plain, with_interval
from rlhfctl.verdict import share


def test_what_is_not_known_is_a_dash() -> None:
    assert plain(None) == with_interval(None, (0, 1), share) == p_value(None) == "-"


def test_numbers_have_three_digits_and_words_stay() -> None:
    assert (plain(0.123456), plain(12345), plain("judge"), plain(True)) == ("0.123", "12345", "judge", "True")


def test_an_interval_stands_in_brackets() -> None:
    assert with_interval(0.7, (0.6, 0.8), share) == "70% [60%, 80%]"
    assert with_interval(0.7, None, share) == "70%"


def test_a_small_p_is_not_rounded_to_zero() -> None:
    assert (p_value(0.0004), p_value(0.0312), p_value(1.0)) == ("<0.001", "0.031", "1.000")
