"""One metric over the steps, in bounded memory however long the run: for sparklines, trends and alarms.

Pure: numbers in, numbers out. Left out: how it is drawn (draw.py) and what it means (alarms.py).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

POINTS = 512  # kept for the sparkline: more than a terminal has columns; neighbours are merged beyond
RECENT = 32  # kept as reported: alarms and trends look back at most this far
FIRST = 5  # kept as reported: what the run began with
_TREND = 10  # reports on each side of a trend
_STRETCH = 3  # columns at most for one report
_ERRORS = 2.0  # standard errors by which the two sides must differ to be called a trend


class Series:
    """Values by step. A step that was reported before (training went back, or was resumed) replaces what came after."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []  # finite ones: means of `_each` reports, under the last one's step
        self._each, self._held = 1, 1  # reports in a point, and in the newest one so far
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self.first: list[tuple[int, float]] = []
        self.last = math.nan  # as reported, finite or not
        self.step = -1

    def add(self, step: int, value: float) -> None:
        """The value at `step`; a value that is not finite is remembered as the last one only."""
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
        """Forget what was reported after `step`."""
        while self.points and self.points[-1][0] > step:
            self.points.pop()
            self._held = self._each
        while self.recent and self.recent[-1][0] > step:
            self.recent.pop()
        self.first = [point for point in self.first if point[0] <= step]
        if not self.recent and self.points:  # further back than was kept: what is left stands in
            self.recent.extend(self.points[-RECENT:])
        self.step = min(self.step, step)
        self.last = self.recent[-1][1] if self.recent else math.nan

    def tail(self, count: int) -> list[float] | None:
        """The last `count` finite values, or None while there are fewer."""
        values = [value for _, value in self.recent]
        return values[-count:] if len(values) >= count else None

    def beginning(self) -> float | None:
        """The mean of the first values, or None while there are too few."""
        return statistics.fmean(value for _, value in self.first) if len(self.first) == FIRST else None

    def trend(self) -> tuple[float, bool] | None:
        """How much the last values differ from those before, and whether by more than they scatter."""
        values = [value for _, value in self.recent]
        count = min(_TREND, len(values) // 2)
        if count < 2:
            return None
        now, before = values[-count:], values[-2 * count : -count]
        change = statistics.fmean(now) - statistics.fmean(before)
        error = math.sqrt((_variance(now) + _variance(before)) / count)
        return change, change != 0 and abs(change) > _ERRORS * error

    def extent(self) -> tuple[float, float] | None:
        """The lowest and the highest value drawn."""
        values = [value for _, value in self.points]
        return (min(values), max(values)) if values else None

    def columns(self, width: int) -> list[float]:
        """At most `width` values from the first step to the last: a few times each report, or means of several."""
        if width < 1 or not self.points:
            return []
        if len(self.points) <= width:
            times = min(_STRETCH, width // len(self.points))
            return [value for _, value in self.points for _ in range(times)]
        low, high = self.points[0][0], self.points[-1][0]
        sums, counts = [0.0] * width, [0] * width
        for step, value in self.points:
            column = (step - low) * width // (high - low + 1)
            sums[column] += value
            counts[column] += 1
        found: list[float] = []
        for total, count in zip(sums, counts, strict=True):
            found.append(total / count if count else found[-1])  # the first column holds the first point
        return found


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0
