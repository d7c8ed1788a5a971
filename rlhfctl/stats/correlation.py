"""Compute rank correlations, accuracies over prompts with intervals, and how much of an accuracy is length.

Pure functions on NumPy arrays. Accuracies are means over prompts: the pairs of one prompt are not independent, so they
are averaged first.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhfctl.stats.resampling import Interval

Floats = NDArray[np.float64]


# ---------------------------------------------------------------- rank correlation


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Compute Spearman's rank correlation (-1 to 1; ties get their mean rank); None if one side is constant."""
    from scipy.stats import spearmanr  # imported late: `show` and `watch` import this package, and need no scipy

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"shapes {a.shape} and {b.shape}: two lists of equal length are needed")
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def spearman_within(first: ArrayLike, second: ArrayLike) -> float | None:
    """Compute the mean over prompts of Spearman's correlation within each row of (P, N); None if no row has one.

    What a scorer adds to all responses of a prompt does not count.
    """
    rows = zip(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64), strict=True)
    found = [value for a, b in rows if (value := spearman(a, b)) is not None]
    return float(np.mean(found)) if found else None


# ---------------------------------------------------------------- accuracy over prompts


@dataclass(frozen=True)
class Share:
    """A share (0 to 1) as mean over `prompts`, with its 95% interval."""

    value: float
    ci95: Interval
    prompts: int


def share_by_prompt(values: ArrayLike, prompts: Sequence[Hashable]) -> Share:
    """Average `values` (n,) between 0 and 1 within each prompt, then over prompts, with a 95% interval.

    The interval is Wilson's (1927), with as many trials as prompts, or more where values within prompts are averaged
    and thus vary less than 0 and 1 do: p(1-p) / variance of the mean (the design effect; Kish 1965). It stays wide
    where few prompts agree by luck, which the bootstrap does not.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or array.size != len(prompts):
        raise ValueError(f"{array.size} values for {len(prompts)} prompts: one prompt per value is needed")
    places = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    place = np.array([places[prompt] for prompt in prompts])
    means = np.bincount(place, array) / np.bincount(place)
    count, share = len(means), float(means.mean())
    variance = float(means.var(ddof=1)) / count if count > 1 else 0.0
    trials = max(float(count), share * (1 - share) / variance) if variance > 0 else float(count)
    return Share(share, _wilson(share, trials), count)


def _wilson(share: float, trials: float) -> Interval:
    """Compute Wilson's 95% interval; both ends included, exactly 0 and 1 where all or none agree."""
    z = NormalDist().inv_cdf(0.975)
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    shrink = 1 + z * z / trials
    return Interval(
        0.0 if share == 0 else (centre - spread) / shrink, 1.0 if share == 1 else (centre + spread) / shrink
    )


# ---------------------------------------------------------------- length


@dataclass(frozen=True)
class LengthReport:
    """What length explains of an accuracy. Shares are over pairs whose lengths differ, unless said otherwise.

    `chosen_longer`: share in which people chose the longer response; `prefers_longer`: share in which the scorer does.
    `accuracy_longer`, `accuracy_shorter`: the accuracy where the chosen response is the longer, and the shorter one.
    `controlled`: the accuracy over all pairs if either were equally frequent. None: there are no such pairs.
    """

    chosen_longer: float | None
    prefers_longer: float | None
    accuracy_longer: Share | None
    accuracy_shorter: Share | None
    controlled: float | None
    controlled_ci95: Interval | None


def length_report(correct: ArrayLike, longer_by: ArrayLike, prompts: Sequence[Hashable]) -> LengthReport:
    """Separate accuracy from length. `correct` (n,): 1, 0.5 or 0; `longer_by` (n,): length of chosen less rejected.

    The length-controlled accuracy weights the pairs so that the chosen response is the longer one as often as the
    shorter one; pairs of equal length keep their weight. A scorer that only knows the length is right on one kind and
    wrong on the other, so it gets exactly 1/2, whatever people chose. Its interval combines those of the parts (MOVER;
    Zou and Donner 2008). It cannot be known where one of the two kinds does not occur.
    """
    right, by = np.asarray(correct, dtype=np.float64), np.asarray(longer_by, dtype=np.float64)
    if not right.size == by.size == len(prompts) or right.size == 0:
        raise ValueError(f"{right.size} pairs, {by.size} lengths, {len(prompts)} prompts: one of each per pair")
    longer, shorter, equal = (_part(right, prompts, kind) for kind in (by > 0, by < 0, by == 0))
    differ = int(np.count_nonzero(by))
    chosen_longer = float(np.mean(by[by != 0] > 0)) if differ else None
    likes = np.where(by > 0, right, 1 - right)[by != 0]
    prefers_longer = float(likes.mean()) if differ else None
    if differ and (longer is None or shorter is None):
        return LengthReport(chosen_longer, prefers_longer, longer, shorter, None, None)
    unequal = differ / right.size
    parts = ((longer, unequal / 2), (shorter, unequal / 2), (equal, 1 - unequal))
    known = [(share, weight) for share, weight in parts if share is not None]
    value = sum(weight * share.value for share, weight in known)
    below = math.sqrt(sum((weight * (share.value - share.ci95.low)) ** 2 for share, weight in known))
    above = math.sqrt(sum((weight * (share.ci95.high - share.value)) ** 2 for share, weight in known))
    return LengthReport(chosen_longer, prefers_longer, longer, shorter, value, Interval(value - below, value + above))


def _part(right: Floats, prompts: Sequence[Hashable], inside: NDArray[np.bool_]) -> Share | None:
    chosen = [prompt for prompt, kept in zip(prompts, inside, strict=True) if kept]
    return share_by_prompt(right[inside], chosen) if chosen else None
