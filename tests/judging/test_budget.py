"""What answers cost, and that a limit is never exceeded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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


@given(
    st.floats(0.01, 10),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40),
    st.lists(st.integers(0, 40), max_size=40),
)
def test_the_limit_is_never_exceeded(limit: float, questions: list[tuple[float, float]], order: list[int]) -> None:
    """Whatever is under way, and in whatever order answers come: what is spent stays within the limit."""
    budget, under_way = Budget(limit), []
    for index, (highest, share) in enumerate(questions):
        if budget.reserve(highest):
            under_way.append((highest, highest * share))
        if under_way and index < len(order):
            budget.settle(*under_way.pop(order[index] % len(under_way)))
        assert budget.spent + budget.reserved <= limit + 1e-9
    for one in under_way:
        budget.settle(*one)
    assert budget.spent <= limit + 1e-9


def test_a_budget_without_a_limit_counts_only() -> None:
    budget = Budget(None)
    assert budget.reserve(1e9)
    budget.settle(1e9, 3.0)
    assert (budget.spent, budget.reserved) == (3.0, 0.0)
