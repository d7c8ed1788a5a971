"""Made-up seeds of `rlhfctl reproduce christiano`, for tests of its numbers and its view."""

from __future__ import annotations

from rlhfctl.tools.reproduce.queries import ACTIVE, RANDOM
from rlhfctl.tools.reproduce.query_outcomes import Asked, Seed

BUDGETS = [20, 40, 80]


def asked(tied: float = 0.1, wrong: float = 0.1, gap: float = 0.3) -> Asked:
    return Asked(tied, wrong, broken=0.2, gap=gap, repeated=0.0)


def seed(
    number: int,
    random: list[float],
    active: list[float],
    by_random: Asked | None = None,
    by_active: Asked | None = None,
) -> Seed:
    each = {RANDOM: by_random or asked(), ACTIVE: by_active or asked()}
    finds = {order: [0.6, 0.61 + 0.01 * number, 0.4] for order in each}
    return Seed(number, BUDGETS, {RANDOM: random, ACTIVE: active}, finds, each, pairs=100)
