"""Random orders of prompts and minibatches."""

from __future__ import annotations

import numpy as np
import pytest

from rlhfctl.training.rl.orders import Orders


def test_every_pass_over_the_prompts_has_all_of_them_in_an_order_of_its_own() -> None:
    orders = Orders(seed=3)
    drawn = [index for number in range(1, 6) for index in orders.prompts(number, 4, 1, 10)]
    passes = [drawn[:10], drawn[10:20]]
    assert all(sorted(one) == list(range(10)) for one in passes) and passes[0] != passes[1]
    assert orders.prompts(2, 4, 2, 10) == [drawn[2]] * 2 + [drawn[3]] * 2  # two responses to each


def test_an_order_depends_on_seed_update_and_epoch_alone() -> None:
    one = Orders(3).minibatches(5, 1, 16)
    assert sorted(one) == list(range(16)) and Orders(3).minibatches(5, 1, 16) == one
    assert all(other != one for other in (Orders(4).minibatches(5, 1, 16), Orders(3).minibatches(6, 1, 16)))
    assert Orders(3).minibatches(5, 2, 16) != one


def test_an_order_of_all_prompts_is_drawn_once_per_pass_and_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order costs as much time as there are prompts: one per prompt of the batch would grow with both."""
    drawn: list[int] = []
    order = Orders._order

    def counted(self: Orders, kind: int, first: int, second: int, count: int) -> np.ndarray:
        drawn.append(first)
        return order(self, kind, first, second, count)

    monkeypatch.setattr(Orders, "_order", counted)
    Orders(3).prompts(1, 8, 1, 100)
    assert drawn == [0]
    Orders(3).prompts(13, 8, 1, 100)  # prompts 96 to 103: four of the first pass, four of the second
    assert drawn == [0, 0, 1]
