"""Fit how a cost grows with a size, and judge whether it grows faster than it must.

A cost that grows like size^p is a straight line of slope p if both are drawn on logarithmic scales. A constant part
(starting, libraries) makes the slope smaller, never larger, so a slope above what must be is a finding. Pure functions
of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.15
"""How much above the exponent that must be a fitted exponent may lie: timings on a shared machine scatter."""
LAST_TOLERANCE = 0.3
"""The same for the last step alone, from the second largest size to the largest; two timings scatter more."""
LEAST = 1e-9  # costs below this count as this: a logarithm needs a positive number


@dataclass(frozen=True)
class Growth:
    """How one cost grows: `exponent` over all sizes, `last` between the two largest; `must` is what it cannot avoid."""

    exponent: float
    last: float
    must: float

    @property
    def too_fast(self) -> bool:
        """Whether it grows faster than it must, over all sizes or at the end."""
        return self.exponent > self.must + TOLERANCE or self.last > self.must + LAST_TOLERANCE


def grown(sizes: Sequence[float], costs: Sequence[float], must: float = 1.0) -> Growth:
    """Judge costs at rising sizes, of which there are two or more."""
    return Growth(exponent(sizes, costs), exponent(sizes[-2:], costs[-2:]), must)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit p of cost = c size^p by least squares on the logarithms: sum(dx dy) / sum(dx^2) about the means.

    ValueError if the sizes are all the same.
    """
    x = [math.log(size) for size in sizes]
    y = [math.log(max(cost, LEAST)) for cost in costs]
    middle, height = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((one - middle) ** 2 for one in x)
    if spread == 0:
        raise ValueError("a growth needs two different sizes")
    return math.fsum((one - middle) * (other - height) for one, other in zip(x, y, strict=True)) / spread


def per_unit(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return what one more unit costs between the two largest sizes; 0 if the larger one costs less."""
    return max(0.0, (costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2]))
