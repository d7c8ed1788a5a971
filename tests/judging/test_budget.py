"""What answers cost, and that a limit is never exceeded."""

from __future__ import annotations

import random

import pytest

from rlhfctl.judging.budget import Budget, cost, highest_cost
from rlhfctl.recipe.sections.endpoint import Endpoint

PRICED = Endpoint(
    base_url="http://a/v1", model="m", price_per_million_input=2.0, price_per_million_output=8.0, max_tokens=100
)


def test_cost_by_hand() -> None:
    assert cost(PRICED, 500_000, 25_000) == 1.0 + 0.2
    assert cost(PRICED, 0, 0) == 0.0
    unpriced = PRICED.model_copy(update={"price_per_million_input": None})
    assert cost(unpriced, 1, 1) is None
    assert cost(PRICED, None, 1) is None and cost(PRICED, 1, None) is None


def test_the_bound_counts_a_token_per_byte() -> None:
    asked = [{"role": "system", "content": "abcd"}, {"role": "user", "content": "ä"}]
    assert highest_cost(PRICED, asked) == ((4 + 32 + 2 + 32) * 2 + 100 * 8) / 1_000_000
    assert highest_cost(PRICED.model_copy(update={"price_per_million_input": None}), asked) == 0.0


@pytest.mark.parametrize("seed", range(50))
def test_the_limit_is_never_exceeded(seed: int) -> None:
    """Whatever is under way, and in whatever order answers come: what is spent stays within the limit."""
    rng = random.Random(seed)
    limit, refused = rng.uniform(0.5, 5.0), 0
    budget, under_way = Budget(limit), []
    for _ in range(60):
        highest = rng.random()
        if budget.reserve(highest):
            under_way.append((highest, highest * rng.random()))
        else:
            refused += 1
        if under_way and rng.random() < 0.7:
            budget.settle(*under_way.pop(rng.randrange(len(under_way))))
        assert budget.spent + budget.reserved <= limit + 1e-9
    for one in under_way:
        budget.settle(*one)
    assert 0 < budget.spent <= limit + 1e-9 and refused > 0
    assert budget.reserved == pytest.approx(0.0)


def test_a_budget_without_a_limit_counts_only() -> None:
    budget = Budget(None)
    assert budget.reserve(1e9)
    budget.settle(1e9, 3.0)
    assert (budget.spent, budget.reserved) == (3.0, 0.0)
