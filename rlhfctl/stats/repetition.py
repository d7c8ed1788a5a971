"""Measure how much responses repeat themselves. Pure functions of token sequences, standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

REPEATED_TOKENS = 2
"""Number of tokens in a row that `repetition` looks for. Short responses have few longer ones."""


def repetition(responses: Sequence[Sequence[int | str]], n: int = REPEATED_TOKENS) -> float:
    """Compute the mean over responses of 1 - distinct n-grams / n-grams (0..1) within one response.

    seq-rep-n of Welleck et al., Neural Text Generation with Unlikelihood Training (2019). 0: no response says the same
    n tokens twice. A response of fewer than n tokens counts as 0. ValueError for n below 1, and without responses.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least one token")
    if not responses:
        raise ValueError("no response to measure")
    return fmean(_repeated(tokens, n) for tokens in responses)


def _repeated(tokens: Sequence[int | str], n: int) -> float:
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
