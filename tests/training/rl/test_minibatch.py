"""One optimizer step on a minibatch: clipping, the entropy bonus, micro-batches, the norm of the gradient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import (
    BATCH,
    KINDS,
    Seen,
    column,
    gap,
    loop_for,
    nothing,
    start,
    trained,
    trained_on_rounded_samples,
)
from torch import Tensor


def test_cliprange_bounds_the_ratio(tmp_path: Path) -> None:
    tight = trained(tmp_path / "tight", cliprange=1e-4)
    wide = trained(tmp_path / "wide", cliprange=50.0)
    assert tight.history[0]["clip_fraction"] > 0.1 and wide.history[0]["clip_fraction"] == 0.0
    assert gap(tight.roles.state(), wide.roles.state(), ".default.") > 0


def test_cliprange_value_bounds_the_values(tmp_path: Path) -> None:
    tight = trained(tmp_path / "tight", num_ppo_epochs=4, cliprange_value=1e-5)
    wide = trained(tmp_path / "wide", num_ppo_epochs=4, cliprange_value=50.0)
    assert tight.history[0]["value_clip_fraction"] > 0.1 and wide.history[0]["value_clip_fraction"] == 0.0


def test_the_entropy_bonus_raises_the_entropy(tmp_path: Path) -> None:
    """With a reward of nothing and no KL term the bonus alone moves the policy."""
    quiet: dict[str, Any] = {"score": nothing, "kl_coef": 0.0, "vf_coef": 0.0, "whiten_advantages": False}
    without = trained(tmp_path / "without", 6, **quiet)
    bonus = trained(tmp_path / "bonus", 6, entropy_coef=0.5, **quiet)
    assert gap(start(), without.roles.state()) == 0.0
    entropy = column(bonus, "policy_entropy")
    assert entropy[-1] > entropy[0] + 0.05 and entropy[-1] <= math.log(11) + 1e-5


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


def test_importance_weights_change_the_step_of_the_policy(tmp_path: Path) -> None:
    """In bfloat16 a cap of 1 lowers the weights of some tokens, and no other number of the first update."""
    plain = trained_on_rounded_samples(tmp_path / "plain", 2)
    weighed = trained_on_rounded_samples(tmp_path / "weighed", 2, importance_cap=1.0)
    assert gap(plain.roles.state(), weighed.roles.state(), ".default.") > 0
    for name in ("score", "kl", "raw_score", "length", "value_mean"):
        assert plain.history[0][name] == weighed.history[0][name], name
    assert plain.history[0]["policy_loss"] != weighed.history[0]["policy_loss"]
    assert 0.9 < weighed.history[0]["importance"] < 1.0
