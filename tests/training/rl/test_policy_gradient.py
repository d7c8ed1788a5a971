"""Losses of a2c, reinforce, rloo and grpo: by hand, against PPO, and against TRL's GRPOTrainer."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from small_loops import KINDS_AND_LORA, gap, loop_for, trained
from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.algorithm import LossType
from rlhfctl.training.rl import policy_gradient
from rlhfctl.training.rl.minibatch import Given, PolicyLoss

NO_CLIP = {"num_ppo_epochs": 1, "num_mini_batches": 1, "cliprange": 1e6, "cliprange_value": 1e6}


@pytest.mark.parametrize(
    ("kind", "lora"),
    [pair if pair == ("head", True) else pytest.param(*pair, marks=pytest.mark.ci) for pair in KINDS_AND_LORA],
)
def test_a2c_is_ppo_of_one_epoch_and_one_minibatch_without_clipping(kind: str, lora: bool, tmp_path: Path) -> None:
    # Huang et al. 2022, arXiv 2205.09123. In float64, so that nothing but rounding could tell them apart.
    parts = {"kind": kind, "lora": lora, "dtype": torch.float64, "max_grad_norm": 0.5, "kl_coef": 0.2, "lam": 0.9}
    ppo = trained(tmp_path / "ppo", 2, **parts, **NO_CLIP)
    a2c = trained(tmp_path / "a2c", 2, algorithm="a2c", **parts)  # SECTION's two epochs are not used
    assert gap(ppo.roles.state(), a2c.roles.state()) < 1e-6
    assert gap(ppo.roles.state(), loop_for(tmp_path / "start", **parts).roles.state()) > 1e-3
    assert [entry["optimizer_steps"] for entry in a2c.history] == [1.0] * 2
    assert "clip_fraction" in ppo.history[0] and "clip_fraction" not in a2c.history[0]
    assert {"value_loss", "explained_variance"} <= a2c.history[0].keys()


# ---------------------------------------------------------------- losses by hand

OLD = torch.log(torch.tensor([[0.5, 0.5, 0.25], [0.2, 0.5, 0.5]], dtype=torch.float64))
NOW = torch.log(torch.tensor([[0.75, 0.25, 0.25], [0.2, 0.25, 0.9]], dtype=torch.float64))  # ratios 1.5, .5, 1; 1, .5
REFERENCE = torch.log(torch.tensor([[0.75, 0.5, 0.25], [0.1, 0.25, 0.9]], dtype=torch.float64))
MASK = torch.tensor([[True, True, True], [True, True, False]])
GAINS = torch.tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, 0.0]], dtype=torch.float64)


LOSSES = [policy_gradient.over_tokens, policy_gradient.over_responses, policy_gradient.group_relative]


def given(part: list[int] | None = None) -> Given:
    rows = [0, 1] if part is None else part
    numbers = (OLD[rows], REFERENCE[rows], GAINS[rows], MASK[rows])
    return Given(*numbers, tokens=MASK.sum(), responses=2)


def test_losses_without_a_ratio_by_hand() -> None:
    first = -2.0 * (math.log(0.75) + math.log(0.25) + math.log(0.25))
    second = math.log(0.2) + math.log(0.25)
    over_tokens = policy_gradient.over_tokens(NOW, given(), Ppo())
    over_responses = policy_gradient.over_responses(NOW, given(), Ppo())
    assert float(over_tokens.loss) == pytest.approx((first + second) / 5)
    assert float(over_responses.loss) == pytest.approx((first + second) / 2)
    squares = math.log(1.5) ** 2 + 2 * math.log(0.5) ** 2
    for terms in (over_tokens, over_responses):
        assert terms.clip_fraction is None and not terms.clipped.any()
        assert float(terms.approx_kl) == pytest.approx(squares / 2 / 5)
        assert float(terms.ratio_mean) == pytest.approx((1.5 + 0.5 + 1 + 1 + 0.5) / 5)


# Losses of the five tokens with clip 0.2 and kl_coef 0.5: -min(ratio A, clip A) + 0.5 x (q/p - 1 - log(q/p)).
BY_HAND = [
    [-2.4, -1.0 + 0.5 * (2.0 - 1 - math.log(2.0)), -2.0],
    [1.0 + 0.5 * (0.5 - 1 - math.log(0.5)), 0.8],  # the worst of 0.5 and 0.8 counts where A is below 0
]


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", (sum(BY_HAND[0]) / 3 + sum(BY_HAND[1]) / 2) / 2),
        ("dapo", (sum(BY_HAND[0]) + sum(BY_HAND[1])) / 5),
        ("dr_grpo", (sum(BY_HAND[0]) + sum(BY_HAND[1])) / (2 * 7)),
    ],
)
def test_the_loss_of_grpo_by_hand(loss_type: LossType, expected: float) -> None:
    section = Ppo(kl_coef=0.5, cliprange=0.2, loss_type=loss_type, response_length=7)
    terms = policy_gradient.group_relative(NOW, given(), section)
    assert float(terms.loss) == pytest.approx(expected, abs=1e-12)
    assert terms.clip_fraction is not None and float(terms.clip_fraction) == pytest.approx(2 / 5)
    parts = [policy_gradient.group_relative(NOW[[row]], given([row]), section).loss for row in (0, 1)]
    assert float(sum(parts)) == pytest.approx(expected, abs=1e-12)  # micro-batches add up


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_reads_nothing_outside_the_mask(loss: PolicyLoss) -> None:
    dirty = [numbers.masked_fill(~MASK, math.nan) for numbers in (NOW, OLD, REFERENCE, GAINS)]
    now = dirty[0].requires_grad_()
    terms = loss(now, Given(dirty[1], dirty[2], dirty[3], MASK, MASK.sum(), 2), Ppo(kl_coef=0.5))
    terms.loss.backward()
    assert float(terms.loss.detach()) == pytest.approx(float(loss(NOW, given(), Ppo(kl_coef=0.5)).loss))
    assert now.grad is not None and torch.isfinite(now.grad).all() and float(now.grad[1, 2]) == 0.0


def test_the_kl_of_grpo_pulls_towards_the_reference() -> None:
    """Without advantages a step down the loss brings each probability nearer to the reference's."""
    now = NOW.clone().requires_grad_()
    still = Given(OLD, REFERENCE, torch.zeros_like(GAINS), MASK, MASK.sum(), 2)
    policy_gradient.group_relative(now, still, Ppo(kl_coef=0.5)).loss.backward()
    assert now.grad is not None
    assert torch.equal(torch.sign(-now.grad)[MASK], torch.sign((REFERENCE - NOW).round(decimals=9))[MASK])


# ---------------------------------------------------------------- against TRL's GRPOTrainer


class _Metrics(dict[str, Any]):
    def __missing__(self, key: str) -> list[float]:
        self[key] = []
        return cast(list[float], self[key])


def trl_loss(now: Tensor, loss_type: str, length: int) -> Tensor:
    """The loss that TRL's own code gives for the tensors above: GRPOTrainer._compute_loss, its forward replaced."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    arguments = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    same = SimpleNamespace(num_processes=1, gather=lambda numbers: numbers, reduce=lambda numbers, reduction: numbers)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *given, **named: (now, torch.zeros_like(now), None),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.5,
        loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.2, args=arguments, use_vllm=False, accelerator=same,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=length,
        _entropy_bonus_enabled=False, aux_loss_enabled=False, _metrics={"train": _Metrics()},
    )  # fmt: skip
    rows = torch.zeros(2, 3, dtype=torch.long)
    inputs = {
        "prompt_ids": rows, "prompt_mask": rows, "completion_ids": rows, "completion_mask": MASK.long(),
        "advantages": GAINS[:, 0], "old_per_token_logps": OLD, "ref_per_token_logps": REFERENCE,
        "num_items_in_batch": MASK.sum(),
    }  # fmt: skip
    loss: Tensor = grpo_trainer.GRPOTrainer._compute_loss(trainer, torch.nn.Identity(), inputs)
    return loss


@pytest.mark.ci  # the import of TRL's trainer takes seconds
@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_loss_and_gradient_of_grpo_are_those_of_trls_trainer(loss_type: LossType) -> None:
    ours, theirs = NOW.clone().requires_grad_(), NOW.clone().requires_grad_()
    section = Ppo(kl_coef=0.5, cliprange=0.2, loss_type=loss_type, response_length=7)
    mine, its = policy_gradient.group_relative(ours, given(), section).loss, trl_loss(theirs, loss_type, 7)
    assert float(mine.detach()) == pytest.approx(float(its.detach()), abs=1e-12)
    mine.backward()
    its.backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-12) and float(ours.grad.abs().max()) > 0.01
