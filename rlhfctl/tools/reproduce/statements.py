"""Check the statements of the papers on the curves of several seeds: which hold here, and which do not.

Each statement is a number per seed whose interval over seeds (Student's t) lies on one side of a bound, or does not.
The bounds are stated before anything is measured. Pure functions; reads and writes no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlhfctl.stats.resampling import Interval
from rlhfctl.stats.scaling import over_seeds
from rlhfctl.tools.reproduce.curves import Curve, Seed

GOOD_FIT = 0.9
"""Least R squared at which a form is said to describe a curve."""

SAME_GOLD = 0.2
"""Difference of gold, in standard deviations of the reference's samples, below which two curves are said to be equal:
a small effect in Cohen's terms."""


@dataclass(frozen=True)
class Statement:
    """One statement, the number that it is judged by, and the outcome. `holds`: None where the interval is too wide."""

    paper: str
    says: str
    measure: str
    value: float
    ci95: Interval
    holds: bool | None


def check(seeds: Sequence[Seed]) -> list[Statement]:
    """Check all statements on at least two seeds."""
    rows = sorted(seeds[0].rl)
    middle = rows[len(rows) // 2]

    def judged(
        paper: str,
        says: str,
        measure: str,
        number: Callable[[Seed], float],
        holds: Callable[[Interval], bool | None],
    ) -> Statement:
        value, interval = over_seeds([number(seed) for seed in seeds])
        return Statement(paper, says, measure, value, interval, holds(interval))

    return [
        judged(
            "Gao",
            "the two forms describe gold: d (alpha - beta d) for best of n, d (alpha - beta log d) for RL",
            f"lowest R squared of the fits of one seed (holds: above {GOOD_FIT})",
            lambda seed: min(curve.fit.r_squared for kind in (seed.best_of_n, seed.rl) for curve in kind.values()),
            lambda ci: _side(ci, GOOD_FIT),
        ),
        judged(
            "Gao",
            "RL spends more KL than best of n for the same gain of gold",
            "gold of best of n less gold of RL, at the largest distance of best of n (holds: above 0)",
            lambda seed: _gap(seed.best_of_n[middle], seed.rl[middle]),
            lambda ci: _side(ci, 0.0),
        ),
        judged(
            "Gao",
            "a larger proxy gives a higher gold score, smoothly",
            "slope of the highest gold of RL over the logarithm of the pairs (holds: above 0)",
            lambda seed: _slope([math.log(size) for size in rows], [max(seed.rl[size].gold) for size in rows]),
            lambda ci: _side(ci, 0.0),
        ),
        judged(
            "Gao",
            "a smaller policy gains more from optimization, and over-optimizes at the same distance",
            "gain of gold at its highest, smaller policy less larger one (holds: above 0)",
            lambda seed: max(seed.small.gold) - max(seed.rl[middle].gold),
            lambda ci: _side(ci, 0.0),
        ),
        judged(
            "Gao",
            "a KL penalty does not change gold at a given distance",
            f"gold with penalty less without, at the same distance (holds: within {SAME_GOLD} of 0)",
            lambda seed: _at_common_distance(seed.penalty, seed.rl[middle]),
            lambda ci: _within(ci, SAME_GOLD),
        ),
        *(
            judged(
                "Coste",
                f"an ensemble's {name} over-optimizes less than one model in best of n",
                "gold at the largest n, ensemble less one model (holds: above 0)",
                lambda seed, name=name: seed.ensembles[name][-1] - seed.ensembles["one model"][-1],  # type: ignore[misc]
                lambda ci: _side(ci, 0.0),
            )
            for name in ("mean", "worst")
        ),
    ]


def _side(interval: Interval, bound: float) -> bool | None:
    """Tell whether the interval lies above the bound (True), below it (False), or on both sides (None)."""
    return True if interval.low > bound else False if interval.high < bound else None


def _within(interval: Interval, bound: float) -> bool | None:
    """Tell whether the interval lies inside -bound..bound (True), outside (False), or neither (None)."""
    if -bound < interval.low and interval.high < bound:
        return True
    return False if interval.low > bound or interval.high < -bound else None


def _gap(best_of_n: Curve, rl: Curve) -> float:
    distance = min(best_of_n.distance[-1], rl.distance[-1])
    return best_of_n.at(distance)[1] - rl.at(distance)[1]


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Compute the least-squares slope of y over x."""
    return float(np.polyfit(np.asarray(x), np.asarray(y), 1)[0])


def _at_common_distance(first: Curve, second: Curve) -> float:
    """Compute the difference of gold at the largest distance that both curves reach."""
    distance = min(first.distance[-1], second.distance[-1])
    return first.at(distance)[1] - second.at(distance)[1]
