"""Losses of reward models: against numbers worked out by hand, products of probabilities, and each other's limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlhfctl.training.preference_losses import best_of_k, bradley_terry, k_wise, plackett_luce


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_by_hand() -> None:
    losses = bradley_terry(tensor(math.log(3), 0.0), tensor(0.0, 0.0))
    assert losses.tolist() == pytest.approx([-math.log(3 / 4), math.log(2)])
    won_by_margin = bradley_terry(tensor(2.0), tensor(1.0), tensor(1.0))
    assert won_by_margin.item() == pytest.approx(math.log(2))  # it wins by the margin and no more: a coin
    assert bradley_terry(tensor(0.0), tensor(0.0), 1.0).item() == pytest.approx(math.log(1 + math.e))


def test_scores_far_apart_give_finite_losses_and_gradients() -> None:
    rejected = torch.tensor([400.0, -400.0], requires_grad=True)
    for label_error in (0.0, 0.1):
        losses = bradley_terry(torch.zeros(2), rejected, label_error=label_error)
        (gradient,) = torch.autograd.grad(losses.sum(), rejected)
        assert losses.isfinite().all() and gradient.isfinite().all()


def test_sixteen_bits_are_widened() -> None:
    low = torch.tensor([1.0], dtype=torch.bfloat16)
    assert bradley_terry(low, -low).dtype == torch.float32
    assert plackett_luce(low, torch.tensor([0])).dtype == best_of_k(low, torch.tensor([0])).dtype == torch.float32


def test_a_label_error_mixes_the_probability_with_a_coin() -> None:
    """At log-odds ln 3 people choose with 3/4; one answer in ten is a coin: 0.9 * 0.75 + 0.1 * 0.5 = 0.725."""
    loss = bradley_terry(tensor(math.log(3)), tensor(0.0), label_error=0.1)
    assert loss.item() == pytest.approx(-math.log(0.725))
    both = bradley_terry(tensor(math.log(3), 0.0), tensor(0.0, math.log(3)), label_error=0.1)
    assert torch.exp(-both).sum().item() == pytest.approx(1.0)  # the two answers of one question
    worst = bradley_terry(tensor(-100.0), tensor(100.0), label_error=0.1)
    assert worst.item() == pytest.approx(-math.log(0.05))  # a wrong label costs no more


def test_without_a_label_error_the_loss_is_the_plain_one() -> None:
    chosen, rejected = torch.randn(50, generator=torch.manual_seed(0)), torch.randn(50, generator=torch.manual_seed(1))
    plain = -torch.log(torch.sigmoid(chosen - rejected))
    assert torch.allclose(bradley_terry(chosen, rejected, label_error=0.0), plain, atol=1e-6)
    near = bradley_terry(chosen, rejected, label_error=1e-9)
    assert torch.allclose(near, plain, atol=1e-6)
    random = bradley_terry(chosen, rejected, label_error=0.3)
    assert torch.allclose(torch.exp(-random), 0.7 * torch.sigmoid(chosen - rejected) + 0.15, atol=1e-6)


def test_k_wise_is_the_mean_over_the_comparisons_of_a_group() -> None:
    scores = tensor(math.log(4), math.log(2), 0.0)  # odds 2, 4 and 2
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    by_hand = -(math.log(2 / 3) + math.log(4 / 5) + math.log(2 / 3)) / 3
    assert k_wise(scores, pairs).item() == pytest.approx(by_hand)
    assert k_wise(scores, pairs[[0]]).item() == pytest.approx(-math.log(2 / 3))  # tied pairs are not listed
    assert k_wise(scores, pairs[[0]].flip(-1)).item() == pytest.approx(-math.log(1 / 3))
    with_margin = -(math.log(1 / 2) + math.log(2 / 3) + math.log(1 / 2)) / 3  # margin ln 2 halves all odds
    assert k_wise(scores, pairs, math.log(2)).item() == pytest.approx(with_margin)
    with_error = -(2 * math.log(0.9 * 2 / 3 + 0.05) + math.log(0.9 * 4 / 5 + 0.05)) / 3
    assert k_wise(scores, pairs, label_error=0.1).item() == pytest.approx(with_error)


def test_plackett_luce_is_the_product_of_choices() -> None:
    scores = tensor(0.0, math.log(4), math.log(2))  # weights 1, 4, 2
    loss = plackett_luce(scores, torch.tensor([2, 0, 1]))
    assert loss.item() == pytest.approx(-math.log(4 / 7 * 2 / 3))
    assert plackett_luce(scores, torch.tensor([0, 1, 2])).item() == pytest.approx(-math.log(1 / 7 * 4 / 6))


def test_the_probabilities_of_all_rankings_add_up_to_one() -> None:
    scores = torch.randn(4, generator=torch.manual_seed(3), dtype=torch.float64)
    rankings = [torch.tensor(order) for order in itertools.permutations(range(4))]
    total = sum(math.exp(-plackett_luce(scores, ranks).item()) for ranks in rankings)
    assert total == pytest.approx(1.0)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    scores = torch.randn(2, generator=torch.manual_seed(5), dtype=torch.float64, requires_grad=True)
    of_two = plackett_luce(scores, torch.tensor([1, 0]))
    pair = bradley_terry(scores[1], scores[0])
    assert of_two.item() == pytest.approx(pair.item(), abs=1e-12)
    gradients = [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (of_two, pair)]
    assert torch.allclose(*gradients, atol=1e-12)


def test_tied_responses_do_not_compete_in_plackett_luce() -> None:
    weights = tensor(1.0, 4.0, 2.0, 3.0)
    loss = plackett_luce(weights.log(), torch.tensor([1, 0, 0, 1]))  # 4 and 2 tied above 1 and 3
    assert loss.item() == pytest.approx(-math.log(4 / 8 * 2 / 6))
    scores = torch.tensor([0.0, 1.0, 5.0], requires_grad=True)
    plackett_luce(scores, torch.tensor([0, 0, 0])).backward()
    assert scores.grad is not None and scores.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("count", [2, 4, 7])
def test_best_of_k_on_equal_scores_is_the_log_of_k(count: int) -> None:
    loss = best_of_k(torch.full((count,), 1.7, dtype=torch.float64), torch.arange(count))
    assert loss.item() == pytest.approx(math.log(count), abs=1e-12)


def test_best_of_k_by_hand() -> None:
    scores = tensor(1.0, 4.0, 2.0, 3.0).log()
    assert best_of_k(scores, torch.tensor([3, 2, 0, 1])).item() == pytest.approx(-math.log(2 / 10))
    assert best_of_k(scores, torch.tensor([1, 2, 0, 3])).item() == pytest.approx(-math.log(2 / 10))  # only the best
    assert best_of_k(scores, torch.tensor([1, 0, 0, 1])).item() == pytest.approx(-math.log(6 / 10))  # either of two


def test_gradients_are_those_of_differences() -> None:
    scores = torch.randn(5, generator=torch.manual_seed(7), dtype=torch.float64, requires_grad=True)
    ranks, pairs = torch.tensor([0, 2, 1, 2, 3]), torch.tensor([[0, 1], [2, 3], [0, 4]])
    assert torch.autograd.gradcheck(lambda s: k_wise(s, pairs, 0.3, 0.1), scores)
    assert torch.autograd.gradcheck(lambda s: plackett_luce(s, ranks), scores)
    assert torch.autograd.gradcheck(lambda s: best_of_k(s, ranks), scores)
