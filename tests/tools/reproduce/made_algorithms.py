"""Made-up seeds of `rlhfctl reproduce rloo`, and the step size of a recipe, for tests of its runs, numbers and view."""

from __future__ import annotations

from operator import attrgetter

from rlhfctl.recipe.sections.ppo import Ppo
from rlhfctl.tools.reproduce.algorithm_outcomes import BEST_OF_N, ROWS, End, Seed
from rlhfctl.tools.reproduce.algorithms import ALGORITHMS, DPO
from rlhfctl.tools.reproduce.curves import Points


def curve(gold_per_distance: float, farthest: float = 2.0) -> Points:
    """Gold rises along a line through the reference, in two points."""
    kl = [(farthest / 2) ** 2, farthest**2]
    gold = [gold_per_distance * farthest / 2, gold_per_distance * farthest]
    return Points.at(kl, [1.0, 2.0], gold)


def end(gold: float) -> End:
    return End(gold, score=1.0 + gold, kl=4.0, wins=0.5 + gold / 10, broken=0.25)


def seed(number: int, gold: dict[str, float], slopes: dict[str, float] | None = None) -> Seed:
    """Make a seed; `gold`: of the ends, 1 where none is named; `slopes`: of the curves, likewise."""
    shift = 0.01 * number
    return Seed(
        number,
        accuracy=0.9,
        broken=0.2,
        curves={name: curve((slopes or {}).get(name, 1.0), 2.0 + shift) for name in ROWS},
        ends={name: end(gold.get(name, 1.0) + (shift if name not in (DPO, BEST_OF_N) else 0.0)) for name in ROWS},
        half=dict.fromkeys(ALGORITHMS, 0.5),
    )


def step_of(section: Ppo, algorithm: str) -> float:
    """Read the step size of an algorithm from its section `ppo`."""
    return float(attrgetter(ALGORITHMS[algorithm].step)(section))
