"""Tell from evaluations during PPO which one is best, and whether the policy exploits its reward (over-optimization).

The proxy is the reward that PPO raises. The held-out reward comes from a reward model that PPO never trains on. While
both rise, the policy learns what both models learned from people. Once the proxy rises and the held-out reward falls,
the policy learns what only the proxy likes (Gao, Schulman, Hilton 2022, "Scaling laws for reward model
overoptimization").

Pure functions of numbers, standard library only. Reads and writes no files; the true preference (gold) is no input.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 3
"""Number of evaluations in a row whose mean is taken: one evaluation may be off by chance."""

FALL_ERRORS = 3.0
"""Standard errors by which the held-out reward must have fallen. The peak is the largest of many noisy means and
therefore too high by chance, and each evaluation is another chance of a false alarm. Simulated with a held-out reward
that stays the same while the proxy rises: false alarms in at most 1% of the runs of 31 evaluations, and in at most 5%
of those of 61, however the noise of neighbouring evaluations is correlated (tests/stats/test_overoptimization.py)."""

RISE_ERRORS = 1.0
"""Standard errors by which the proxy must have risen since the held-out reward's peak."""


@dataclass(frozen=True)
class Point:
    """One evaluation: the mean proxy and the mean held-out reward over the eval prompts, with their standard errors."""

    step: int
    proxy: float
    heldout: float
    proxy_error: float
    heldout_error: float


@dataclass(frozen=True)
class Overoptimization:
    """The held-out reward at its peak (the update in the middle of that window) and now; the proxy at both times."""

    peak_step: int
    heldout_peak: float
    heldout_now: float
    proxy_then: float
    proxy_now: float


def best_evaluation(points: Sequence[tuple[float, float]], kl_limit: float | None = None) -> int:
    """Return the index of the best evaluation among `points`, each (KL, value): the highest value within the limit.

    The earliest of equal ones is best. If none is within the limit, it is the one with the lowest KL.
    """
    if not points:
        raise ValueError("no evaluation to choose from")
    allowed = [index for index, (kl, _) in enumerate(points) if kl_limit is None or kl <= kl_limit]
    if not allowed:
        return min(range(len(points)), key=lambda index: points[index][0])
    return max(allowed, key=lambda index: points[index][1])


def overoptimized(points: Sequence[Point]) -> Overoptimization | None:
    """Tell whether the proxy rose and the held-out reward fell since the latter's peak, both by more than noise.

    The means of WINDOW evaluations are compared: the last ones, and those where the held-out reward was highest before.
    Their noise is taken as that of one evaluation on each side, because evaluations on the same prompts with the same
    random numbers err alike. None: not so, or not known yet.
    """
    windows = [points[start : start + WINDOW] for start in range(len(points) - WINDOW + 1)]
    if len(windows) <= WINDOW:  # the last window and one before it share no evaluation
        return None
    now, earlier = windows[-1], windows[:-WINDOW]
    peak = max(earlier, key=_heldout)
    fall, fall_error = _heldout(peak) - _heldout(now), _error([peak, now], "heldout_error")
    rise, rise_error = _proxy(now) - _proxy(peak), _error([peak, now], "proxy_error")
    if fall <= FALL_ERRORS * fall_error or rise <= RISE_ERRORS * rise_error:
        return None
    middle = peak[WINDOW // 2].step
    return Overoptimization(middle, _heldout(peak), _heldout(now), _proxy(peak), _proxy(now))


def _heldout(window: Sequence[Point]) -> float:
    return statistics.fmean(point.heldout for point in window)


def _proxy(window: Sequence[Point]) -> float:
    return statistics.fmean(point.proxy for point in window)


def _error(windows: Sequence[Sequence[Point]], name: str) -> float:
    """Return the standard error of the difference between the means of two windows."""
    return math.sqrt(sum(statistics.fmean(getattr(point, name) ** 2 for point in window) for window in windows))
