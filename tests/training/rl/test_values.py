"""The critic's values of a batch, by as few forwards as possible."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import (
    KINDS,
    Seen,
    gap,
    loop_for,
    start,
    trained,
)

from rlhfctl.rewards.model import ModelReward
from rlhfctl.training.rl.collect import collect
from rlhfctl.training.rl.experience import Experience, spread


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_the_critics_forward_that_gives_the_values_is_that_of_its_first_step(kind: str, tmp_path: Path) -> None:
    """One minibatch: no forward is made twice, collecting leaves no gradient on the model, the step is the same."""
    section: dict[str, Any] = {"kind": kind, "dtype": torch.float64, "num_ppo_epochs": 1}
    left = []

    def look(loop: Seen, batch: Experience) -> None:
        left.append([p.grad for p in loop.trained.values() if p.grad is not None])
        assert batch.value_step is not None

    one = loop_for(tmp_path / "one", change=look, **section)
    calls = []
    one.roles.critic.scorer.score.register_forward_pre_hook(lambda *_: calls.append(1))
    one.train()
    assert left == [[]] and len(calls) == 1

    def without(loop: Seen, batch: Experience) -> None:
        batch.value_step = None

    plain = trained(tmp_path / "plain", change=without, **section)
    assert gap(one.roles.state(), plain.roles.state()) < 1e-12
    assert gap(one.roles.state(), start(kind=kind, dtype=torch.float64), "critic") > 1e-4


def test_the_forward_that_scores_gives_a_critic_on_the_reward_model_all_its_states(tmp_path: Path) -> None:
    """Its trunk runs once per update, where the reward model scores; every epoch reads the same states."""
    loop = loop_for(tmp_path, kind="reward", num_ppo_epochs=3)
    critic = loop.roles.critic
    assert critic is not None
    loop.collector = dataclasses.replace(loop.collector, reward=ModelReward(critic.reads, 1))
    before = {name: value.clone() for name, value in critic.scorer.named_parameters()}
    calls: list[int] = []
    states = loop.roles.critic.states
    critic.states = lambda sequences: calls.append(1) or states(sequences)  # type: ignore[method-assign,func-returns-value]
    loop.train()
    assert not calls
    moved = {name for name, value in critic.scorer.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"score.weight"} == {name.removeprefix("critic.") for name in loop.roles.critic_parameters()}
    assert not critic.reads.score.weight.any()  # the reward model's own head stays

    alone = loop_for(tmp_path / "alone", kind="reward")  # another scorer: the critic asks for its states itself
    batch = collect(alone.collector, 1)
    assert alone.roles.critic is not None and batch.kept_states([0], pytest.fail).shape[0] == int(
        batch.value_mask[0].sum()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_full_forwards_of_the_critic(kind: str, tmp_path: Path) -> None:
    """Two minibatches: a head's values come from sampling, the other critics' from forwards of their own."""
    loop = loop_for(tmp_path, kind=kind, num_mini_batches=2)
    critic, length = loop.roles.critic, loop.section.response_length
    assert critic is not None
    with torch.no_grad():
        weight = critic.scorer.score.weight
        weight.copy_(torch.linspace(-1, 1, weight.numel())[None])
    batch = collect(loop.collector, 1)
    sequences = batch.sequences(range(len(batch.responses)))
    trunk = loop.roles.policy if critic.shares_policy else critic
    with torch.no_grad():
        values = critic.values(trunk.states(sequences)[sequences.states(length)])
    assert batch.value_step is None
    assert torch.allclose(batch.values, spread(values, batch.value_mask), atol=1e-4)
    assert batch.values[batch.value_mask].std() > 0.1
