"""Compute the power of the sign test, and the number of prompts that would settle a comparison.

Reads counts; pure functions. Power is exact: sums of binomial probabilities, not a normal approximation.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlhfctl.stats.resampling import Floats

ALPHA, POWER = 0.05, 0.8
"""Level of the two-sided test, and the usual power to plan for: Cohen, Statistical Power Analysis (1988)."""

MOST_PROMPTS = 100_000
"""Number of decided prompts up to which the search goes: a difference that needs more does not matter in practice."""

_SEARCHED = 5  # the exact number lies within 2 square roots of the approximation: shares 0.5016 to 1, power 0.5 to 0.95


def sign_test_power(decided: int, share: float, alpha: float = ALPHA) -> float:
    """Compute the power of the exact two-sided sign test with `decided` prompts of which `share` (0..1) are won."""
    if decided < 1:
        raise ValueError(f"decided is {decided}: at least one prompt that is no tie is needed")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: it must lie in 0..1")
    return float(_powers(np.array([decided]), share, alpha)[0])


def prompts_to_settle(
    wins: int, losses: int, ties: int = 0, *, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Compute how many prompts the sign test needs to decide, if wins, losses and ties keep their shares.

    The smallest number of decided prompts from which on the power stays at `power` or above (power rises in steps, and
    falls a little between them), divided by the share of prompts that are decided. Returns None where wins equal
    losses, or where more than MOST_PROMPTS decided prompts are needed.
    """
    decided = wins + losses
    if min(wins, losses, ties) < 0 or decided + ties < 1:
        raise ValueError(f"{wins} wins, {losses} losses, {ties} ties: counts of at least one prompt are needed")
    if wins == losses:
        return None
    share = max(wins, losses) / decided
    needed = _decided_needed(share, power, alpha)
    return None if needed is None else math.ceil(needed * (decided + ties) / decided)


def _decided_needed(share: float, power: float, alpha: float) -> int | None:
    """Search around the normal approximation (e.g. Noether, JASA 82, 1987) for the exact number."""
    quantiles = NormalDist().inv_cdf(1 - alpha / 2) / 2 + NormalDist().inv_cdf(power) * math.sqrt(share * (1 - share))
    about = (quantiles / (share - 0.5)) ** 2
    if about > MOST_PROMPTS:
        return None
    aside = _SEARCHED * math.sqrt(about) + 40
    sizes = np.arange(max(1, math.floor(about - aside)), math.ceil(about + aside))
    below = np.flatnonzero(_powers(sizes, share, alpha) < power)
    return int(sizes[below[-1]]) + 1 if below.size else int(sizes[0])


def _powers(sizes: NDArray[np.int64], share: float, alpha: float) -> Floats:
    """Compute P[the test rejects] for each number of decided prompts: both tails, at most `alpha` in all."""
    from scipy.stats import binom  # slow to import

    critical = binom.ppf(alpha / 2, sizes, 0.5)  # smallest k with P[X <= k] >= alpha / 2
    critical = np.where(binom.cdf(critical, sizes, 0.5) > alpha / 2, critical - 1, critical)  # largest with <=
    result: Floats = binom.cdf(critical, sizes, share) + binom.sf(sizes - critical - 1, sizes, share)
    return result
