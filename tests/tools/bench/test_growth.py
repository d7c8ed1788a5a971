"""The fit of a growth, by numbers worked out by hand, and what counts as too fast."""

from __future__ import annotations

import math

import pytest

from rlhfctl.tools.bench.growth import exponent, grown, per_unit


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_pure_power_has_its_power_as_exponent(power: float) -> None:
    sizes = [10, 40, 160, 1000]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_the_exponent_is_the_slope_of_least_squares() -> None:
    # On logarithmic scales the points are (0, 0), (1, 1), (2, 4): about the means 1 and 5/3 the slope is (5/3 + 7/3)/2.
    sizes, costs = [1, math.e, math.e**2], [1, math.e, math.e**4]
    found = grown(sizes, costs)
    assert found.exponent == pytest.approx(2.0) and found.last == pytest.approx(3.0)


def test_a_quadratic_is_too_fast_and_a_line_with_a_constant_is_not() -> None:
    sizes = [1_000, 10_000, 100_000]
    assert not grown(sizes, [5 + size / 1_000 for size in sizes]).too_fast
    assert grown(sizes, [5 + (size / 1_000) ** 2 for size in sizes]).too_fast
    assert grown(sizes, [100 + (size / 10_000) ** 2 for size in sizes], must=1.0).exponent < 1.15
    hidden = [10 + size / 1_000 + (size / 5_000) ** 2 for size in sizes]  # it shows at the end alone
    assert grown(sizes, hidden).exponent < 1.15 < grown(sizes, hidden).last and grown(sizes, hidden).too_fast


def test_what_must_grow_so_fast_is_not_too_fast() -> None:
    sizes = [1, 2, 4]
    assert not grown(sizes, [size**2 for size in sizes], must=2.0).too_fast
    assert not grown(sizes, [1, 2.1, 4.5]).too_fast  # two timings scatter


def test_costs_of_nothing_and_equal_sizes() -> None:
    assert exponent([1, 2], [0, 0]) == 0
    with pytest.raises(ValueError, match="two different sizes"):
        exponent([5, 5], [1, 2])


def test_one_more_unit_costs_what_the_last_step_says() -> None:
    assert per_unit([10, 20, 40], [9, 5, 6]) == pytest.approx(0.05) and per_unit([10, 20], [5, 4]) == 0
