"""Learn from experience: each option of losses, steps and schedules against what it must change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import (
    KINDS_AND_LORA,
    Seen,
    column,
    gap,
    loop_for,
    nothing,
    start,
    trained,
)

from rlhfctl.training.rl.experience import Experience


def test_a_step_that_the_format_rounds_away_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    half = {"kind": "model", "lora": False, "dtype": torch.bfloat16}
    loop_for(tmp_path / "a", learning_rate=1e-6, run={"say": said.append}, **half).train()
    assert sum("cannot move by a step of learning_rate 1e-06" in sentence for sentence in said) == 1
    said.clear()
    loop_for(tmp_path / "b", learning_rate=1e-6, run={"say": said.append}).train()
    assert said == []


@pytest.mark.parametrize(("kind", "part"), [("adapter", ".critic."), ("adapter", "score"), ("model", "critic.")])
def test_the_critic_learns_unless_vf_coef_is_zero(kind: str, part: str, tmp_path: Path) -> None:
    before = start(kind=kind)
    still = trained(tmp_path / "still", 2, kind=kind, vf_coef=0.0).roles.state()
    moved = trained(tmp_path / "moved", 2, kind=kind, vf_coef=0.5).roles.state()
    assert gap(before, still, part) == 0.0 and gap(before, moved, part) > 1e-4
    assert gap(before, still, ".default.") > 1e-3


def test_a_head_that_does_not_train_the_trunk_leaves_the_policy_alone(tmp_path: Path) -> None:
    """The advantages are set to nothing, so only the critic's gradient is left."""

    def only_values(_: Seen, batch: Experience) -> None:
        batch.advantages = torch.zeros_like(batch.advantages)

    before = start(kind="head")
    for trains in (True, False):
        loop = loop_for(tmp_path / str(trains), 2, kind="head", change=only_values)
        loop.roles.critic.trains_trunk = trains
        loop.train()
        assert gap(before, loop.roles.state(), "score") > 1e-3
        assert (gap(before, loop.roles.state(), ".default.") > 1e-4) is trains


@pytest.mark.parametrize(("parts", "epochs"), [(1, 1), (2, 3), (8, 2)])
def test_there_is_an_optimizer_step_for_each_minibatch_of_each_epoch(parts: int, epochs: int, tmp_path: Path) -> None:
    loop = loop_for(tmp_path, 1, num_mini_batches=parts, num_ppo_epochs=epochs)
    steps: list[int] = []
    loop.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    loop.train()
    assert len(steps) == parts * epochs == loop.history[0]["optimizer_steps"]


def test_target_kl_ends_the_epochs_of_an_update(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_ppo_epochs": 6, "num_mini_batches": 2}
    assert column(trained(tmp_path / "all", 2, **options), "optimizer_steps") == [12, 12]
    assert column(trained(tmp_path / "far", 2, target_kl=1e6, **options), "optimizer_steps") == [12, 12]
    assert column(trained(tmp_path / "near", 2, target_kl=1e-12, **options), "optimizer_steps") == [2, 2]
    some = trained(tmp_path / "some", 1, target_kl=0.02, **options).history[0]
    assert 2 < some["optimizer_steps"] < 12


@pytest.mark.parametrize(
    ("kind", "warmup", "due"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("linear", 2, [0, 1 / 2, 1, 1 / 2]),
        ("constant_with_warmup", 2, [0, 1 / 2, 1, 1]),
        ("cosine", 0, [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(kind: str, warmup: int, due: list[float], tmp_path: Path) -> None:
    loop = loop_for(tmp_path, 4, lr_scheduler_type=kind, warmup_steps=warmup, num_ppo_epochs=1)
    used: list[float] = []
    loop.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    loop.train()
    assert column(loop, "learning_rate") == pytest.approx([1e-2 * share for share in due])
    assert used == column(loop, "learning_rate")


def test_weight_decay_shrinks_matrices_and_leaves_vectors(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"score": nothing, "kl_coef": 0.0, "vf_coef": 0.0, "whiten_advantages": False}
    options: dict[str, Any] = {"kind": "model", "lora": False, "lr_scheduler_type": "constant"}
    before = start(kind="model", lora=False)
    after = trained(tmp_path, 3, weight_decay=0.5, **quiet, **options).roles.state()
    shapes = {value.dim() for value in before.values()}
    assert shapes == {1, 2}
    for name, value in before.items():
        due = value * (1 - 1e-2 * 0.5) ** 6 if value.dim() == 2 else value
        assert torch.allclose(after[name], due, rtol=1e-5, atol=1e-7), name
    assert gap(before, trained(tmp_path / "without", 3, **quiet, **options).roles.state()) == 0.0


@pytest.mark.parametrize(("kind", "lora"), KINDS_AND_LORA)
def test_gradient_checkpointing_recomputes_and_changes_nothing(kind: str, lora: bool, tmp_path: Path) -> None:
    states, calls = [], []
    for on in (False, True):
        loop = loop_for(
            tmp_path / str(on),
            2,
            kind=kind,
            lora=lora,
            dtype=torch.float64,
            gradient_checkpointing=on,
            num_mini_batches=2,
        )
        count = [0]
        inside = loop.roles.policy.trunk.layers[0].mlp  # runs again; a hook after it would not: the rerun ends early
        inside.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        loop.train()
        states.append(loop.roles.state())
        calls.append(count[0])
    assert gap(states[0], states[1]) < 1e-10
    assert gap(states[0], start(kind=kind, lora=lora, dtype=torch.float64)) > 1e-3
    assert calls[1] > calls[0]


def test_a_share_of_the_layers_is_recomputed_the_first_ones(tmp_path: Path) -> None:
    """Of two layers half: the first runs again in the backward pass, the second does not; the weights are the same."""
    states, calls = [], []
    for on in (False, True):
        share = {"gradient_checkpointing": True, "checkpointed_share": 0.5} if on else {}
        loop, count = loop_for(tmp_path / str(on), 1, dtype=torch.float64, **share), [0, 0]
        for number, layer in enumerate(loop.roles.policy.trunk.layers):
            layer.mlp.register_forward_pre_hook(lambda *_, count=count, at=number: count.__setitem__(at, count[at] + 1))
        loop.train()
        states.append(loop.roles.state())
        calls.append(count)
    assert len(calls[0]) == 2 and gap(states[0], states[1]) < 1e-10
    assert calls[1][0] > calls[0][0] and calls[1][1] == calls[0][1]
