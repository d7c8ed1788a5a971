"""Score responses with an ensemble of reward models: their mean, the worst case, or the mean less their variance.

The three ways are those of Coste et al. (2023, "Reward Model Ensembles Help Mitigate Overoptimization", section 3):
mean, worst-case and uncertainty-weighted optimization. The pure functions stand first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev, pvariance
from typing import Any

from rlhfctl.recipe.sections.reward import Aggregate
from rlhfctl.rewards.episode import Episode, RewardFunction


def aggregated(scores: Sequence[Sequence[float]], how: Aggregate, coefficient: float = 1.0) -> list[float]:
    """Combine the members' `scores` (members, responses) into one score per response.

    `variance` is mean - coefficient x (1/members) sum_i (score_i - mean)^2. A score that is not finite makes the
    result NaN.
    """
    return [_combined(column, how, coefficient) for column in zip(*scores, strict=True)]


def _combined(column: Sequence[float], how: Aggregate, coefficient: float) -> float:
    if not all(map(math.isfinite, column)):
        return math.nan
    if how == "min":
        return min(column)
    return fmean(column) - (coefficient * pvariance(column) if how == "variance" else 0.0)


def disagreements(scores: Sequence[Sequence[float]]) -> list[float]:
    """Compute the standard deviation over members of each response's score; `scores` (members, responses).

    The deviation of the members themselves, not of a population that they stand for. NaN where a score is not finite.
    """
    return [pstdev(column) if all(map(math.isfinite, column)) else math.nan for column in zip(*scores, strict=True)]


def preference_variance(scores: Sequence[Sequence[float]]) -> float:
    """Compute how far members differ on a question: `scores` (members, responses to one prompt).

    It is the variance over members of the predicted preference, sigmoid(score_a - score_b), as in Christiano et al.
    (2017, section 2.2.4); with more than two responses its mean over all pairs. Between 0 and 1/4.
    """
    count = len(scores[0])
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    return fmean(pvariance([_sigmoid(member[a] - member[b]) for member in scores]) for a, b in pairs)


def _sigmoid(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(value / 2))


class EnsembleReward:
    """Score episodes with each member, and combine their scores.

    `by_member`: the members' scores in the last call, (members, episodes). `disagreement`: the standard deviation over
    members of each episode's score.
    """

    def __init__(self, members: Sequence[RewardFunction], how: Aggregate, coefficient: float = 1.0) -> None:
        self.members = list(members)
        self.how = how
        self.coefficient = coefficient
        self.by_member: list[list[float]] = []

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        self.by_member = [list(member(episodes)) for member in self.members]
        return aggregated(self.by_member, self.how, self.coefficient)

    @property
    def disagreement(self) -> list[float]:
        return disagreements(self.by_member)


def ensemble_in(reward: Any) -> EnsembleReward | None:
    """Find the ensemble in a reward: the reward itself, or one part of a weighted sum; None without one."""
    if isinstance(reward, EnsembleReward):
        return reward
    scorers = getattr(reward, "scorers", {})
    return next((scorer for scorer, _ in scorers.values() if isinstance(scorer, EnsembleReward)), None)


def disagreement_metric(reward: Any) -> dict[str, float]:
    """Return the metric `reward_disagreement` of the reward's last call: the mean over responses of the members'
    standard deviation. Empty without an ensemble, and if no response has finite scores."""
    ensemble = ensemble_in(reward)
    finite = [one for one in ensemble.disagreement if math.isfinite(one)] if ensemble is not None else []
    return {"reward_disagreement": fmean(finite)} if finite else {}
