"""Numbers inside formulas: sums that are cut short, negative numbers in parentheses, and what counts as the same."""

from __future__ import annotations

from rlhfctl.dashboard.formulas import Step, signed, summed


def test_a_long_sum_shows_its_first_terms_and_how_many_more_there_are() -> None:
    assert summed([1.0, -2.0], 1.0) == "1 + (-2)"
    assert summed([1.0, 2.0, 3.0], 0.5) == "1 + 0.5 x 2 + 0.25 x 3"
    assert summed([1.0] * 6, 1.0) == "1 + 1 + 1 + 1 + 2 more"


def test_a_negative_number_stands_in_parentheses() -> None:
    assert (signed(-0.5), signed(0.5)) == ("(-0.5)", "0.5")


def test_numbers_agree_up_to_the_rounding_of_float32() -> None:
    def step(value: float, recorded: float | None) -> Step:
        return Step("x", "", "", value, recorded, "")

    assert step(1.0, 1.00005).agrees and step(1e6, 1e6 + 50).agrees and step(1.0, None).agrees
    assert not step(1.0, 1.001).agrees and not step(0.0, 0.001).agrees
