"""Ensembles of reward models: their scores, their disagreement and the variance of preferences by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rlhfctl.rewards.ensemble import (
    EnsembleReward,
    aggregated,
    disagreement_metric,
    disagreements,
    ensemble_in,
    preference_variance,
)
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.weighted import WeightedReward

SCORES = [[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]  # three members, two responses
EPISODES = [Episode([1], [2], "a", "b", {}), Episode([1], [3], "a", "c", {})]


def test_the_three_ways_by_hand() -> None:
    assert aggregated(SCORES, "mean") == [3.0, 1.0]
    assert aggregated(SCORES, "min") == [1.0, 0.0]
    # Squared distances from the mean: 4 + 1 + 9 = 14 and 1 + 1 + 4 = 6; a third of each.
    assert aggregated(SCORES, "variance", 0.5) == pytest.approx([3.0 - 0.5 * 14 / 3, 1.0 - 0.5 * 2.0])
    assert aggregated(SCORES, "variance", 0.0) == aggregated(SCORES, "mean")


def test_members_that_agree_change_nothing() -> None:
    same = [[0.3, -2.0]] * 4
    for how in ("mean", "min", "variance"):
        assert aggregated(same, how, 7.0) == pytest.approx(same[0])  # type: ignore[arg-type]
    assert disagreements(same) == [0.0, 0.0]
    assert preference_variance(same) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", ["mean", "min", "variance"])
def test_one_score_that_is_not_finite_spoils_that_response_alone(how: str, bad: float) -> None:
    found = aggregated([[1.0, bad], [3.0, 2.0]], how)  # type: ignore[arg-type]
    assert math.isfinite(found[0]) and math.isnan(found[1])
    assert math.isnan(disagreements([[1.0, bad], [3.0, 2.0]])[1])


def test_the_variance_of_preferences_by_hand() -> None:
    # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4: mean 1/2, variance 1/16.
    third = math.log(3.0)
    assert preference_variance([[third, 0.0], [0.0, third]]) == pytest.approx(1 / 16)
    # A third response that equals the first: its pair with the first has no variance, that with the second the same.
    assert preference_variance([[third, 0.0, third], [0.0, third, 0.0]]) == pytest.approx((1 / 16 + 0 + 1 / 16) / 3)
    assert preference_variance([[1e9, 0.0], [0.0, 1e9]]) == pytest.approx(0.25)


def of(scores: Sequence[float]) -> object:
    return lambda episodes: list(scores[: len(episodes)])


def test_an_ensemble_asks_each_member_and_tells_how_far_they_differ() -> None:
    reward = EnsembleReward([of(scores) for scores in SCORES], "min")  # type: ignore[misc]
    assert disagreement_metric(reward) == {}  # nothing was scored yet
    assert reward(EPISODES) == [1.0, 0.0]
    assert reward.by_member == SCORES
    spread = [math.sqrt(14 / 3), math.sqrt(2.0)]
    assert reward.disagreement == pytest.approx(spread)
    assert disagreement_metric(reward) == {"reward_disagreement": pytest.approx(sum(spread) / 2)}


def test_an_ensemble_is_found_in_a_weighted_sum_and_nowhere_else() -> None:
    reward = EnsembleReward([of([1.0, 2.0]), of([3.0, 2.0])], "mean")  # type: ignore[list-item]
    both = WeightedReward({"other": (of([1.0, 1.0]), 2.0), "reward": (reward, 1.0)})  # type: ignore[dict-item]
    assert ensemble_in(both) is reward
    assert both(EPISODES) == [4.0, 4.0]
    assert disagreement_metric(both) == {"reward_disagreement": 0.5}
    assert disagreement_metric(of([1.0])) == {} and ensemble_in(WeightedReward({})) is None
