"""Compute how far a reward model's confidence can be trusted: reliability bins and the expected calibration error.

A reward model that is trained with the Bradley-Terry loss says that the first response of a pair wins with probability
sigmoid(margin), where margin is its score less that of the second. Its confidence in the side that it prefers is
sigmoid(|margin|), between 0.5 and 1, so the order of the two responses plays no role. Pure functions on NumPy arrays.
Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equations 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEAST_CONFIDENCE = 0.5  # of the preferred side: the confidence of a coin
BINS = 10  # of equal width between 0.5 and 1; Guo et al. use 15 between 0 and 1


@dataclass(frozen=True)
class Bin:
    """The pairs whose confidence lies in low <= confidence < high (the last bin holds 1, too).

    `predicted` is their mean confidence, `observed` the share of them that is ranked as people did (a tie counts half).
    """

    low: float
    high: float
    n: int
    predicted: float
    observed: float


def confidences(margins: ArrayLike) -> Floats:
    """Compute sigmoid(|margin|) of `margins` (n,): the confidence in the preferred side, 0.5 to 1."""
    return np.asarray(1 / (1 + np.exp(-np.abs(np.asarray(margins, dtype=np.float64)))))


def correct(margins: ArrayLike) -> Floats:
    """Map `margins` (n,) of chosen less rejected to 1 (ranked as people did), 0.5 (a tie) or 0."""
    return (np.sign(np.asarray(margins, dtype=np.float64)) + 1) / 2


def reliability_bins(margins: ArrayLike, *, bins: int = BINS) -> list[Bin]:
    """Sort the pairs into `bins` of equal width by confidence. `margins` (n,): score of chosen less rejected.

    Bins without pairs are left out.
    """
    sure, right = confidences(margins), correct(margins)
    if sure.size == 0 or not np.isfinite(sure).all():
        raise ValueError("margins must be finite, and at least one")
    edges = np.linspace(LEAST_CONFIDENCE, 1.0, bins + 1)
    place = np.minimum(np.searchsorted(edges, sure, side="right") - 1, bins - 1)
    found = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            low, high = float(edges[index]), float(edges[index + 1])
            found.append(Bin(low, high, int(inside.sum()), float(sure[inside].mean()), float(right[inside].mean())))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Compute the mean over pairs of |predicted - observed| of the bin that each is in (0 to 1).

    It is above 0 by chance alone where bins hold few pairs: for a bin of n pairs by about 0.4 / sqrt(n).
    """
    total = sum(one.n for one in bins)
    return sum(one.n * abs(one.predicted - one.observed) for one in bins) / total


def overconfidence(bins: Sequence[Bin]) -> float:
    """Compute the mean confidence less the share that is ranked as people did; below 0 for too little confidence."""
    total = sum(one.n for one in bins)
    return sum(one.n * (one.predicted - one.observed) for one in bins) / total
