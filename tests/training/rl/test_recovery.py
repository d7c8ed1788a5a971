"""Recover from numbers that are not finite: nothing is applied, the batch is kept, training goes back or stops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small_loops import (
    Seen,
    gap,
    loop_for,
    share_of_a,
    trained,
)
from torch import Tensor

from rlhfctl.errors import EngineError
from rlhfctl.rewards.episode import Episode
from rlhfctl.training.rl.experience import Experience


class Faulty:
    """share_of_a, but for the calls numbered in `bad`; keeps the weights and responses at each call."""

    def __init__(self, bad: Callable[[int], bool], value: float) -> None:
        self.bad = bad
        self.value = value
        self.loop: Seen | None = None
        self.weights: list[dict[str, Tensor]] = []
        self.responses: list[list[list[int]]] = []

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        assert self.loop is not None
        self.weights.append(self.loop.roles.state())
        self.responses.append([list(episode.response_ids) for episode in episodes])
        scores = share_of_a(episodes)
        if self.bad(len(self.weights)):
            scores[2] = self.value
        return scores


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_once_not_finite_sends_training_back(value: float, tmp_path: Path) -> None:
    said: list[str] = []
    reward = Faulty(lambda call: call == 4, value)
    loop = loop_for(tmp_path, 6, score=reward, checkpoint_steps=2, run={"say": said.append})
    reward.loop = loop
    loop.train()
    assert loop.done == 6 and len(loop.history) == 6 and len(reward.weights) == 8  # 1 2 3 4 then 3 4 5 6
    kept = tmp_path / "non-finite" / "update-000004-attempt-0.jsonl"
    assert [path.name for path in (tmp_path / "non-finite").iterdir()] == [kept.name]
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["response_ids"] for line in lines] == reward.responses[3]
    assert lines[2]["raw_scores"] == str(value) and math.isfinite(lines[1]["raw_scores"])  # strict JSON
    assert len(said) == 1 and str(kept) in said[0] and "update 4" in said[0] and "from update 2" in said[0]
    assert gap(reward.weights[4], reward.weights[2]) == 0.0  # both as update 2 left them
    assert gap(reward.weights[2], reward.weights[3]) > 0
    assert reward.responses[4] != reward.responses[2]  # other samples
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loop.roles.state().values())


def test_a_reward_that_is_never_finite_stops_training_and_the_batch_is_named(tmp_path: Path) -> None:
    reward = Faulty(lambda call: call > 2, math.nan)
    reward.loop = loop = loop_for(tmp_path, 6, score=reward, checkpoint_steps=2)
    with pytest.raises(EngineError, match="update 3 failed 3 times in a row") as caught:
        loop.train()
    assert len(reward.weights) == 2 + 3
    kept = sorted((tmp_path / "non-finite").iterdir())
    assert [path.name for path in kept] == [f"update-000003-attempt-{n}.jsonl" for n in range(3)]
    assert str(caught.value.where) == str(kept[-1])


def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path: Path) -> None:
    said: list[str] = []
    loop = loop_for(tmp_path, 4, checkpoint_steps=1, num_mini_batches=2, run={"say": said.append})
    calls = [0]

    def poisoned(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return gradient * math.nan if calls[0] == 10 else gradient

    next(p for name, p in loop.trained.items() if ".default." in name).register_hook(poisoned)
    loop.train()
    assert loop.done == 4 and calls[0] > 4 * 4
    assert len(said) == 1 and "a loss or a gradient is not finite" in said[0]
    assert len(list((tmp_path / "non-finite").iterdir())) == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loop.roles.state().values())


def test_an_advantage_that_is_not_finite_makes_a_loss_that_is_not_applied(tmp_path: Path) -> None:
    def poke(loop: Seen, batch: Experience) -> None:
        if loop.done == 1 and loop.attempt == 0:
            batch.advantages[0, 0] = math.nan

    said: list[str] = []
    loop = trained(tmp_path, 3, change=poke, checkpoint_steps=1, run={"say": said.append})
    assert loop.done == 3 and len(said) == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loop.roles.state().values())
