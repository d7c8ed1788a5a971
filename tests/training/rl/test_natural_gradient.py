"""Conjugate gradient, the size of a step and the line search: against linear algebra and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhfctl.training.rl.natural_gradient import Trial, conjugate_gradient, line_search, step_size


def positive(size: int, seed: int) -> Tensor:
    """A symmetric positive definite matrix (size, size)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.t() / size + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_conjugate_gradient_solves_what_linalg_solves(seed: int, damping: float) -> None:
    matrix, target = positive(12, seed), torch.linspace(-1, 2, 12, dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, target, 60, damping)
    expected = torch.linalg.solve(matrix + damping * torch.eye(12, dtype=torch.float64), target)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_conjugate_gradient_needs_one_product_per_eigenvalue() -> None:
    asked: list[Tensor] = []
    scales = torch.tensor([1.0, 1.0, 1.0, 5.0, 5.0, 9.0], dtype=torch.float64)

    def product(vector: Tensor) -> Tensor:
        asked.append(vector)
        return scales * vector

    found = conjugate_gradient(product, torch.ones(6, dtype=torch.float64), 50)
    assert len(asked) == 3  # Nocedal and Wright, theorem 5.4
    assert torch.allclose(found, 1 / scales)
    asked.clear()
    conjugate_gradient(product, torch.ones(6, dtype=torch.float64), 2)
    assert len(asked) == 2


def test_conjugate_gradient_without_a_gradient_or_without_curvature_is_zero() -> None:
    nothing = torch.zeros(3)
    assert torch.equal(conjugate_gradient(lambda v: v, nothing, 5), nothing)
    assert torch.equal(conjugate_gradient(torch.zeros_like, torch.ones(3), 5), nothing)


def test_a_step_reaches_the_bound_to_second_order() -> None:
    matrix, direction = positive(5, 1), torch.arange(1.0, 6.0, dtype=torch.float64)
    step = step_size(direction, matrix @ direction, 0.02) * direction
    assert float(step @ matrix @ step) / 2 == pytest.approx(0.02)
    assert step_size(direction, torch.zeros_like(direction), 0.02) == 0.0


def test_the_line_search_takes_the_first_fraction_that_improves_within_the_bound() -> None:
    worth = {1.0: Trial(5.0, 0.2), 0.5: Trial(0.9, 0.01), 0.25: Trial(1.5, 0.09), 0.125: Trial(1.2, 0.01)}
    assert line_search(worth.__getitem__, 1.0, 0.1, 0.5, 10) == (3, 0.25, worth[0.25])
    assert line_search(worth.__getitem__, 1.0, 0.1, 0.5, 2) == (2, 0.0, None)
    assert line_search(worth.__getitem__, 1.0, 0.01, 0.5, 4) == (4, 0.125, worth[0.125])


@pytest.mark.parametrize("trial", [Trial(math.nan, 0.0), Trial(2.0, math.nan), Trial(2.0, math.inf), Trial(1.0, 0.0)])
def test_the_line_search_refuses_what_is_not_finite_or_no_better(trial: Trial) -> None:
    assert line_search(lambda fraction: trial, 1.0, 0.1, 0.8, 3) == (3, 0.0, None)
