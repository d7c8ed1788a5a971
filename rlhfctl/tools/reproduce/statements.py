"""Check the statements of the papers on the curves of several seeds: which held here, and which did not.

The five statements of Gao, Schulman and Hilton (2022) are the main results that their introduction lists: the
functional forms, and the four findings below them. Coste et al. (2023) give the statement on ensembles, in their
abstract. Before them stands what all of them take for granted: that over-optimization happens at all.

A statement has one measure or several. Each is a number per seed, whose interval over seeds (Student's t) lies on one
side of a bound, or does not. A statement held if all of its measures did, and did not if one of them did not. The
intervals are not corrected for the number of measures. Pure functions; reads and writes no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from rlhfctl.stats.resampling import Interval
from rlhfctl.stats.scaling import over_seeds
from rlhfctl.tools.reproduce.curves import Curve, Seed, common, gold_difference

GOOD_FIT = 0.9
"""Least R squared at which a form is said to describe a curve."""

SAME_GOLD = 0.2
"""Difference of gold, in standard deviations of the reference's samples, below which two curves are said to be equal:
a small effect in Cohen's terms. Also the least fall of gold that counts as over-optimization."""

SAME_DISTANCE = 0.5
"""Difference of distances, in square roots of nats, below which two curves are said to turn at the same place."""

Holds = Callable[[Interval], bool | None]


@dataclass(frozen=True)
class Measure:
    """One number by which a statement is judged: its mean over seeds. `held`: None where the interval is too wide."""

    what: str
    value: float
    ci95: Interval
    asked: str
    held: bool | None


@dataclass(frozen=True)
class Statement:
    """One statement of a paper, its measures, and the outcome: None where it cannot be told."""

    name: str
    says: str
    measures: list[Measure]
    held: bool | None


def judged(what: str, numbers: Sequence[float], asked: tuple[str, Holds]) -> Measure:
    """Judge one number per seed by what is asked of its interval over seeds."""
    value, interval = over_seeds(numbers)
    return Measure(what, value, interval, asked[0], asked[1](interval))


def check(seeds: Sequence[Seed]) -> list[Statement]:
    """Check all statements on at least two seeds."""
    rows = sorted(seeds[0].rl)
    middle = rows[len(rows) // 2]
    tens = [math.log10(size) for size in rows]

    def measure(what: str, number: Callable[[Seed], float], asked: tuple[str, Holds]) -> Measure:
        return judged(what, [number(seed) for seed in seeds], asked)

    return [
        statement(
            "premise",
            "optimization goes too far: gold first rises with the proxy and then falls",
            [
                measure("fall of gold, RL", lambda seed: seed.rl[middle].fall, above(SAME_GOLD)),
                measure("fall of gold, best of n", lambda seed: seed.best_of_n[middle].fall, above(SAME_GOLD)),
            ],
        ),
        statement(
            "Gao 1",
            "the two forms describe gold: d (alpha - beta d) for best of n, d (alpha - beta log d) for RL",
            [
                measure(
                    "lowest R squared of a seed's fits, best of n",
                    lambda seed: min(curve.fit.r_squared for curve in seed.best_of_n.values()),
                    above(GOOD_FIT),
                ),
                measure(
                    "lowest R squared of a seed's fits, RL",
                    lambda seed: min(curve.fit.r_squared for curve in seed.rl.values()),
                    above(GOOD_FIT),
                ),
            ],
        ),
        statement(
            "Gao 2",
            "RL spends more KL than best of n for the same gold, but gives the same gold for the same proxy score",
            [
                measure(
                    "gold at the same distance, best of n less RL",
                    lambda seed: gold_difference(seed.best_of_n[middle], seed.rl[middle]),
                    above(0.0),
                ),
                measure(
                    "gold at the same proxy score, best of n less RL",
                    lambda seed: gold_difference(seed.best_of_n[middle], seed.rl[middle], "proxy"),
                    within(SAME_GOLD),
                ),
            ],
        ),
        statement(
            "Gao 3",
            "a larger proxy gives more gold, smoothly, in step with the logarithm of its size (here: pairs)",
            [
                measure(
                    "highest gold of best of n, rise per ten times the pairs",
                    lambda seed: _slope(tens, [max(seed.best_of_n[size].gold) for size in rows]),
                    above(0.0),
                ),
                measure(
                    "highest gold of RL, rise per ten times the pairs",
                    lambda seed: _slope(tens, [max(seed.rl[size].gold) for size in rows]),
                    above(0.0),
                ),
                measure(
                    "highest gold of RL, middle proxy less the line through the others",
                    lambda seed: _bend(tens, [max(seed.rl[size].gold) for size in rows]),
                    within(SAME_GOLD),
                ),
            ],
        ),
        statement(
            "Gao 4",
            "a larger policy gains less from optimization, and over-optimizes as much as a smaller one",
            [
                measure(
                    "highest gold, smaller policy less larger one",
                    lambda seed: max(seed.small.gold) - max(seed.rl[middle].gold),
                    above(0.0),
                ),
                measure(
                    "proxy score above gold at the same distance, smaller policy less larger one",
                    lambda seed: _gap(seed.small, seed.rl[middle]),
                    within(SAME_GOLD),
                ),
                measure(
                    "distance of the highest gold, smaller policy less larger one",
                    lambda seed: _place(seed.small) - _place(seed.rl[middle]),
                    within(SAME_DISTANCE),
                ),
            ],
        ),
        statement(
            "Gao 5",
            "a KL penalty raises the proxy score at a given distance, but not gold",
            [
                measure(
                    "proxy score at the same distance, with penalty less without",
                    lambda seed: _proxy_difference(seed.penalty, seed.rl[middle]),
                    above(0.0),
                ),
                measure(
                    "gold at the same distance, with penalty less without",
                    lambda seed: gold_difference(seed.penalty, seed.rl[middle]),
                    within(SAME_GOLD),
                ),
            ],
        ),
        *(
            statement(
                f"Coste {number}",
                f"in best of n, the {said} of an ensemble over-optimizes less than one model, and gives more gold",
                [
                    measure(
                        "fall of gold, one model less ensemble",
                        lambda seed, name=name: (  # type: ignore[misc]
                            fmean(one.fall for one in seed.single) - seed.ensembles[name].fall
                        ),
                        above(0.0),
                    ),
                    measure(
                        "gold at the largest n, ensemble less one model",
                        lambda seed, name=name: (  # type: ignore[misc]
                            seed.ensembles[name].gold[-1] - fmean(one.gold[-1] for one in seed.single)
                        ),
                        above(0.0),
                    ),
                ],
            )
            for number, (name, said) in enumerate(
                (("worst", "worst score"), ("mean less variance", "mean less variance")), start=1
            )
        ),
    ]


def statement(name: str, says: str, measures: list[Measure]) -> Statement:
    """Make a statement from its measures: it held if all did, and did not if one did not."""
    outcomes = [measure.held for measure in measures]
    return Statement(name, says, measures, False if False in outcomes else None if None in outcomes else True)


# ---------------------------------------------------------------- bounds


def above(bound: float) -> tuple[str, Holds]:
    """Ask for an interval above the bound (held); one below it did not hold, one on both sides cannot tell."""
    return f"above {bound:g}", lambda ci: True if ci.low > bound else False if ci.high < bound else None


def within(bound: float) -> tuple[str, Holds]:
    """Ask for an interval inside -bound..bound (held); one outside did not hold, one across an end cannot tell."""

    def held(ci: Interval) -> bool | None:
        if -bound < ci.low and ci.high < bound:
            return True
        return False if ci.low > bound or ci.high < -bound else None

    return f"within {bound:g} of 0", held


# ---------------------------------------------------------------- numbers of one seed


def _proxy_difference(first: Curve, second: Curve) -> float:
    """Compute the mean difference of the proxy's score over the distances that both curves reach."""
    places = common(first, second)
    return float(np.mean(first.proxy_at(places) - second.proxy_at(places)))


def _gap(first: Curve, second: Curve) -> float:
    """Compute the mean difference of (proxy less gold) over the distances that both curves reach."""
    return _proxy_difference(first, second) - gold_difference(first, second)


def _place(curve: Curve) -> float:
    """Return the distance of the highest gold."""
    return curve.distance[curve.highest]


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Compute the least-squares slope of y over x."""
    return float(np.polyfit(np.asarray(x), np.asarray(y), 1)[0])


def _bend(x: Sequence[float], y: Sequence[float]) -> float:
    """Compute how far the middle y lies above the line through the first and the last point."""
    middle = len(x) // 2
    return float(y[middle] - np.interp(x[middle], [x[0], x[-1]], [y[0], y[-1]]))
