"""Keep the history of one metric in bounded memory, for charts, trends and alarms.

Numbers in, numbers out. Leaves out how the history is drawn (draw.py) and what it means (alarms.py).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

POINTS = 512  # points kept for charts, more than a terminal has columns; neighbours are merged when there are more
RECENT = 32  # last reports kept as reported: alarms and trends look back at most this far
FIRST = 5  # first reports kept as reported
_TREND = 10  # reports on each side of a trend
_STRETCH = 3  # most columns per report
_ERRORS = 2.0  # standard errors by which the two sides of a trend must differ


class Series:
    """Keep the values of one metric by step. A step reported again (after a resume) replaces what came after it."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []  # (step of the last report, mean of `_each` finite reports)
        self._each, self._held = 1, 1  # reports per point, and reports in the newest point so far
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self.first: list[tuple[int, float]] = []
        self.last = math.nan  # as reported, finite or not
        self.step = -1

    def add(self, step: int, value: float) -> None:
        """Add the value at `step`. A value that is not finite is kept only as `last`."""
        if step <= self.step:
            self.cut(step - 1)
        self.step, self.last = step, value
        if not math.isfinite(value):
            return
        point = (step, value)
        self.recent.append(point)
        if len(self.first) < FIRST:
            self.first.append(point)
        if self.points and self._held < self._each:
            self._held += 1
            mean = self.points[-1][1]
            self.points[-1] = (step, mean + (value - mean) / self._held)
            return
        if len(self.points) == POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(late[0], early[1] / 2 + late[1] / 2) for early, late in pairs]
            self._each *= 2
        self.points.append(point)
        self._held = 1

    def cut(self, step: int) -> None:
        """Forget the reports after `step`."""
        while self.points and self.points[-1][0] > step:
            self.points.pop()
            self._held = self._each
        while self.recent and self.recent[-1][0] > step:
            self.recent.pop()
        self.first = [point for point in self.first if point[0] <= step]
        if not self.recent and self.points:  # cut back beyond the recent reports: use the merged points
            self.recent.extend(self.points[-RECENT:])
        self.step = min(self.step, step)
        self.last = self.recent[-1][1] if self.recent else math.nan

    def tail(self, count: int) -> list[float] | None:
        """Return the last `count` finite values, or None while there are fewer."""
        values = [value for _, value in self.recent]
        return values[-count:] if len(values) >= count else None

    def beginning(self) -> float | None:
        """Return the mean of the first values, or None while there are too few."""
        return statistics.fmean(value for _, value in self.first) if len(self.first) == FIRST else None

    def trend(self) -> tuple[float, bool] | None:
        """Return the change between the means of earlier and last values, and whether it exceeds their scatter."""
        values = [value for _, value in self.recent]
        count = min(_TREND, len(values) // 2)
        if count < 2:
            return None
        now, before = values[-count:], values[-2 * count : -count]
        change = statistics.fmean(now) - statistics.fmean(before)
        error = math.sqrt((_variance(now) + _variance(before)) / count)
        return change, change != 0 and abs(change) > _ERRORS * error

    def extent(self) -> tuple[float, float] | None:
        """Return the lowest and the highest value drawn."""
        values = [value for _, value in self.points]
        return (min(values), max(values)) if values else None

    def columns(self, axis: Axis) -> list[float | None]:
        """Return one value per column: the mean of its reports, else the last value before, or None."""
        if not axis.width:
            return []
        sums, counts = [0.0] * axis.width, [0] * axis.width
        for step, value in self.points:
            column = axis.column(step)
            sums[column] += value
            counts[column] += 1
        found: list[float | None] = []
        for total, count in zip(sums, counts, strict=True):
            found.append(total / count if count else found[-1] if found else None)
        return found


@dataclass(frozen=True)
class Axis:
    """The shared step axis of charts below each other: `width` columns, from step `low` to just before step `high`."""

    low: int
    high: float
    width: int

    @classmethod
    def of(cls, several: Iterable[Series], width: int) -> Axis:
        """Build the axis from the first to the last report of several series. Few reports get several columns each."""
        drawn = [series.points for series in several if len(series.points) > 1]
        if not drawn or width < 1:
            return cls(0, 1.0, max(0, width))
        low = min(points[0][0] for points in drawn)
        each = min((points[-1][0] - points[0][0]) / (len(points) - 1) for points in drawn)
        high = max(points[-1][0] for points in drawn) + each
        return cls(low, high, min(width, _STRETCH * round((high - low) / each)))

    def column(self, step: int) -> int:
        """Return the column of a step, 0 to width - 1."""
        return min(self.width - 1, max(0, int((step - self.low) * self.width / (self.high - self.low))))


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0
