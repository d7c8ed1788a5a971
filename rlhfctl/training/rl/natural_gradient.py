"""Compute natural-gradient steps: conjugate gradient, the size of a step in a trust region, and the line search.

Pure functions on flat vectors (P,), without models. `product` is a function that multiplies a vector with the Fisher
matrix F, which is never made. Source: Schulman et al. 2015 (arXiv 1502.05477), "Trust region policy optimization",
appendix C; conjugate gradient as in Nocedal and Wright, "Numerical optimization", algorithm 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

_SOLVED = 1e-10  # conjugate gradient ends when the squared residual is this part of the squared right-hand side


def dot(one: Tensor, other: Tensor) -> float:
    """Compute the inner product of two vectors (P,) in float64."""
    return float(torch.dot(one.double(), other.double()))


def conjugate_gradient(product: Product, target: Tensor, steps: int, damping: float = 0.0) -> Tensor:
    """Solve (F + damping I) x = target for x (P,) by at most `steps` steps of conjugate gradient, from x = 0.

    Each step asks for one `product`. F must be symmetric and positive semi-definite.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction = residual.clone()
    size = start = dot(residual, residual)
    for _ in range(steps):
        if size <= _SOLVED * start:
            break
        multiplied = product(direction) + damping * direction
        curvature = dot(direction, multiplied)
        if curvature <= 0.0:  # a direction in which the KL does not grow: no step along it can be sized
            break
        length = size / curvature
        solution = solution + length * direction
        residual = residual - length * multiplied
        before, size = size, dot(residual, residual)
        direction = residual + (size / before) * direction
    return solution


def step_size(direction: Tensor, multiplied: Tensor, max_kl: float) -> float:
    """Compute sqrt(2 max_kl / x'Fx): along `direction` x, the KL to second order is `max_kl` there (appendix C).

    `multiplied` is F x, without damping. 0 where x'Fx is not positive: there is no finite step.
    """
    curvature = dot(direction, multiplied)
    return (2 * max_kl / curvature) ** 0.5 if curvature > 0.0 else 0.0


@dataclass(frozen=True)
class Trial:
    """Hold what a policy is worth in the line search: `surrogate`, and `kl` from the old policy in nats per token."""

    surrogate: float
    kl: float


def line_search(
    attempt: Callable[[float], Trial], start: float, max_kl: float, shrink: float, most: int
) -> tuple[int, float, Trial | None]:
    """Find the first of the fractions 1, shrink, shrink^2, ... of a step that improves on `start` within `max_kl`.

    `attempt` gives the trial of a fraction; at most `most` are tried. Returns how many were tried, the accepted
    fraction and its trial; 0.0 and None if none is accepted. A number that is not finite is never accepted.
    """
    fraction = 1.0
    for number in range(1, most + 1):
        trial = attempt(fraction)
        if trial.surrogate > start and trial.kl <= max_kl:
            return number, fraction, trial
        fraction *= shrink
    return most, 0.0, None
