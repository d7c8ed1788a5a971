"""Summaries of a run's metrics."""

from __future__ import annotations

import pytest

from rlhfctl.training.history import closing_means


def test_the_closing_means_are_those_of_the_last_tenth() -> None:
    history = [{"score": float(step), "kl": 2.0 * step} for step in range(1, 31)]
    assert closing_means(history) == {"score": pytest.approx(29.0), "kl": pytest.approx(58.0)}
    assert closing_means(history[:9]) == {"score": 9.0, "kl": 18.0}  # at least one
    assert closing_means([]) == {}


def test_a_metric_that_some_of_these_updates_lack_is_left_out() -> None:
    history: list[dict[str, float]] = [{"score": 1.0}] * 18 + [{"score": 1.0}, {"score": 2.0, "rollout_gap": 0.1}]
    assert closing_means(history) == {"score": 1.5}
