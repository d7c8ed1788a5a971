"""A metric's history: bounded memory, a cut where training went back, and trends that exceed the scatter."""

from __future__ import annotations

import math
import random

from rlhfctl.dashboard.series import POINTS, RECENT, Axis, Series


def filled(*values: float) -> Series:
    series = Series()
    for step, value in enumerate(values, start=1):
        series.add(step, value)
    return series


def test_memory_is_bounded_and_the_picture_stays_true() -> None:
    series = filled(*(float(step) for step in range(1, 100_001)))
    assert len(series.points) <= POINTS
    assert len(series.recent) == RECENT
    assert series.last == 100_000.0
    columns = [value for value in series.columns(Axis.of([series], 50)) if value is not None]
    assert len(columns) == 50
    assert columns == sorted(columns)
    assert columns[0] < 3_000 and columns[-1] > 97_000  # a straight line from corner to corner


def test_few_reports_fill_the_width_in_whole_columns() -> None:
    def columns(series: Series, width: int) -> list[float | None]:
        return series.columns(Axis.of([series], width))

    assert columns(filled(1.0, 2.0), 7) == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    assert columns(filled(1.0, 2.0), 2) == [1.0, 2.0]
    assert columns(filled(1.0, 3.0), 1) == [2.0]
    assert columns(filled(), 0) == columns(filled(1.0), 0) == []


def test_charts_below_each_other_show_the_same_steps() -> None:
    train, sparse, late = filled(*map(float, range(1, 21))), Series(), Series()
    for step in (0, 10, 20):
        sparse.add(step, float(step))
    late.add(18, 5.0)
    late.add(20, 6.0)
    axis = Axis.of([train, sparse, late], 42)
    assert (axis.low, axis.high, axis.width) == (0, 21.0, 42)
    assert sparse.columns(axis) == [0.0] * 20 + [10.0] * 20 + [20.0] * 2
    assert train.columns(axis)[:6] == [None, None, 1.0, 1.0, 2.0, 2.0] and train.columns(axis)[-1] == 20.0
    assert late.columns(axis) == [None] * 36 + [5.0] * 4 + [6.0] * 2
    assert Axis.of([sparse], 42).width == 9


def test_a_step_said_again_replaces_what_came_after() -> None:
    series = filled(1.0, 2.0, 3.0, 4.0)
    series.add(3, 30.0)
    assert [value for _, value in series.points] == [1.0, 2.0, 30.0]
    series.cut(1)
    assert (series.last, series.step) == (1.0, 1)
    series.cut(0)
    assert math.isnan(series.last) and series.extent() is None


def test_a_cut_far_back_leaves_something_to_look_back_on() -> None:
    series = filled(*(float(step) for step in range(1, 301)))
    series.cut(100)
    assert series.last == 100.0
    assert series.tail(5) == [96.0, 97.0, 98.0, 99.0, 100.0]


def test_what_is_not_finite_is_the_last_value_and_nothing_else() -> None:
    series = filled(1.0, math.nan)
    assert math.isnan(series.last) and len(series.points) == 1
    series.add(3, 2.0)
    assert series.last == 2.0


def test_a_trend_must_stand_out_from_the_scatter() -> None:
    draw = random.Random(0)
    noise = [draw.gauss(0, 1) for _ in range(20)]
    change, clear = filled(*noise).trend() or (0.0, True)
    assert not clear
    change, clear = filled(*noise[:10], *(value + 5 for value in noise[10:])).trend() or (0.0, False)
    assert clear and change > 3
    assert filled(1.0, 2.0, 3.0).trend() is None
    assert filled(2.0, 2.0, 2.0, 2.0).trend() == (0.0, False)
