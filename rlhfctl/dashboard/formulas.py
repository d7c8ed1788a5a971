"""Write numbers inside formulas: one step of an explanation, and how sums and products are written.

Pure functions; the text is ASCII alone, so that every terminal shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhfctl.dashboard.text import number

TOLERANCE = 1e-4
"""Largest difference, relative to numbers above 1, between a recorded number and the same computed again: training
computes in float32."""

TERMS_SHOWN = 4
"""Number of terms of a long sum that are written out."""

PPO, GAE, DETAILS = (
    "Schulman et al. 2017, arXiv 1707.06347",
    "Schulman et al. 2015, arXiv 1506.02438",
    ("Huang et al. 2024, arXiv 2403.17031"),
)
KL_BLOG = "Schulman 2020, joschu.net/blog/kl-approx.html"
KL_FORMULAS = {"k1": "log p - log q", "k2": "(log p - log q)^2 / 2", "k3": "q/p - 1 - log(q/p)"}


@dataclass(frozen=True)
class Step:
    """One number: its name, its formula in symbols, the formula with the numbers in it, its source ("": as before).

    `value` is computed here; `recorded` is the same number in the trace, or (`compared` says which) by another formula;
    None where there is none.
    """

    name: str
    formula: str
    worked: str
    value: float
    recorded: float | None
    source: str
    compared: str = "recorded"

    @property
    def agrees(self) -> bool:
        """Tell whether the recorded number is the computed one, up to the rounding of float32."""
        gap = 0.0 if self.recorded is None else abs(self.value - self.recorded)
        return gap <= TOLERANCE * max(1.0, abs(self.value))


def summed(terms: Sequence[float], rate: float) -> str:
    """Write a discounted sum: the first terms, and how many more there are."""
    shown = [
        f"{n(rate**power)} x {signed(term)}" if power and rate != 1 else signed(term)
        for power, term in enumerate(terms[:TERMS_SHOWN])
    ]
    more = len(terms) - TERMS_SHOWN
    return " + ".join(shown) + (f" + {more} more" if more > 0 else "")


def n(value: float) -> str:
    return number(value, 4)


def signed(value: float) -> str:
    """Write a number inside a sum or product: a negative one in parentheses."""
    return f"({n(value)})" if value < 0 else n(value)


def floats(values: Any) -> list[float]:
    return [float(value) for value in values]
