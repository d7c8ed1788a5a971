"""Learn from experience: each option of losses, steps and schedules against what it must change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import (
    BATCH,
    KINDS,
    KINDS_AND_LORA,
    Seen,
    column,
    gap,
    loop_for,
    nothing,
    start,
    trained,
)
from torch import Tensor

from rlhfctl.training.rl.experience import Experience


def test_a_step_that_the_format_rounds_away_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    half = {"kind": "model", "lora": False, "dtype": torch.bfloat16}
    loop_for(tmp_path / "a", learning_rate=1e-6, run={"say": said.append}, **half).train()
    assert sum("cannot move by a step of learning_rate 1e-06" in sentence for sentence in said) == 1
    said.clear()
    loop_for(tmp_path / "b", learning_rate=1e-6, run={"say": said.append}).train()
    assert said == []


def test_cliprange_bounds_the_ratio(tmp_path: Path) -> None:
    tight = trained(tmp_path / "tight", cliprange=1e-4)
    wide = trained(tmp_path / "wide", cliprange=50.0)
    assert tight.history[0]["clip_fraction"] > 0.1 and wide.history[0]["clip_fraction"] == 0.0
    assert gap(tight.roles.state(), wide.roles.state(), ".default.") > 0


def test_cliprange_value_bounds_the_values(tmp_path: Path) -> None:
    tight = trained(tmp_path / "tight", num_ppo_epochs=4, cliprange_value=1e-5)
    wide = trained(tmp_path / "wide", num_ppo_epochs=4, cliprange_value=50.0)
    assert tight.history[0]["value_clip_fraction"] > 0.1 and wide.history[0]["value_clip_fraction"] == 0.0


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


def test_the_entropy_bonus_raises_the_entropy(tmp_path: Path) -> None:
    """With a reward of nothing and no KL term the bonus alone moves the policy."""
    quiet: dict[str, Any] = {"score": nothing, "kl_coef": 0.0, "vf_coef": 0.0, "whiten_advantages": False}
    without = trained(tmp_path / "without", 6, **quiet)
    bonus = trained(tmp_path / "bonus", 6, entropy_coef=0.5, **quiet)
    assert gap(start(), without.roles.state()) == 0.0
    entropy = column(bonus, "policy_entropy")
    assert entropy[-1] > entropy[0] + 0.05 and entropy[-1] <= math.log(11) + 1e-5


def test_token_entropy_is_that_of_the_sampled_tokens_whatever_the_bonus(tmp_path: Path) -> None:
    """With an entropy bonus the exact entropy over the PPO epochs has a name of its own."""
    for coef in (0.0, 0.3):
        loop = trained(tmp_path / str(coef), 2, entropy_coef=coef)
        for batch, entry in zip(loop.batches, loop.history, strict=True):
            sampled = -float(batch.logprobs[batch.response_mask].mean())
            assert entry["token_entropy"] == pytest.approx(sampled, abs=1e-6)
            assert ("policy_entropy" in entry) is (coef > 0)
    assert abs(entry["policy_entropy"] - entry["token_entropy"]) > 1e-3


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


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_batch_is_cut_for_memory_changes_nothing(kind: str, tmp_path: Path) -> None:
    def weights(size: int, pieces: int, parts: int = 2, forward: int = BATCH) -> dict[str, Tensor]:
        loop = trained(
            tmp_path / f"{size}-{pieces}-{parts}-{forward}",
            2,
            kind=kind,
            dtype=torch.float64,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=pieces,
            num_mini_batches=parts,
            local_rollout_forward_batch_size=forward,
            entropy_coef=0.01,
        )
        return loop.roles.state()

    whole = weights(8, 1)
    assert gap(whole, start(kind=kind, dtype=torch.float64)) > 1e-3
    for size, pieces, forward in ((4, 2, BATCH), (1, 8, BATCH), (8, 1, 3)):
        assert gap(whole, weights(size, pieces, forward=forward)) < 1e-10
    assert gap(whole, weights(8, 1, parts=4)) > 1e-4


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


def test_max_grad_norm_cuts_the_gradient_and_the_uncut_length_is_reported(tmp_path: Path) -> None:
    before = start()
    lengths: dict[float | None, list[float]] = {}
    moved = {}
    norms = {}
    for limit in (None, 1e-3):
        loop = loop_for(tmp_path / str(limit), 1, max_grad_norm=limit, num_ppo_epochs=1)
        lengths[limit] = []
        loop.optimizer.register_step_pre_hook(lambda *_, loop=loop, limit=limit: lengths[limit].append(length(loop)))
        loop.train()
        norms[limit] = loop.history[0]["grad_norm"]
        moved[limit] = gap(before, loop.roles.state())
    assert norms[None] == pytest.approx(norms[1e-3]) and norms[None] > 1e-2
    assert lengths[None] == pytest.approx([norms[None]])
    assert lengths[1e-3] == pytest.approx([1e-3], rel=1e-3)
    assert moved[1e-3] > 0


def length(loop: Seen) -> float:
    grads = [p.grad for p in loop.trained.values() if p.grad is not None]
    return float(torch.stack([grad.norm() for grad in grads]).norm())


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
