"""What one update hands on to the next: the KL coefficient, the moments of scores, the average of the weights."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import BATCH, column, gap, loop_for, share_of_a, start, trained, untimed
from torch import nn

from rlhfctl.training.rl.carried import WeightAverage, next_kl_coef
from rlhfctl.training.rl.collect import collect


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.2 * (1 + 0.1 * 256 / 10_000)),  # 10% above the target of 6
        (3.0, 0.2 * (1 - 0.2 * 256 / 10_000)),  # 50% below: clipped at 20%
        (60.0, 0.2 * (1 + 0.2 * 256 / 10_000)),
        (6.0, 0.2),
    ],
)
def test_the_coefficient_moves_by_the_clipped_relative_error(kl: float, expected: float) -> None:
    assert next_kl_coef(0.2, kl, target=6.0, horizon=10_000, responses=256) == pytest.approx(expected, rel=1e-12)


def test_each_update_uses_the_coefficient_that_the_ones_before_lead_to(tmp_path: Path) -> None:
    loop = trained(tmp_path, 4, kl_coef=0.3, kl_target=0.5, kl_horizon=20, trace_every=0)
    coefficients, beta = column(loop, "kl_coef"), 0.3
    for update, kl in enumerate(column(loop, "kl")):
        assert coefficients[update] == pytest.approx(beta, rel=1e-9)
        error = min(max((kl - 0.5) / 0.5, -0.2), 0.2)
        beta *= 1 + error * BATCH / 20
    assert len(set(coefficients)) == 4
    batch = loop.batches[-1]
    penalties = batch.rewards.sum(1) - batch.scores
    torch.testing.assert_close(penalties, -coefficients[-1] * batch.kl.sum(1), rtol=0, atol=1e-5)
    last = loop.history[-1]
    assert last["non_score_reward"] == pytest.approx(-coefficients[-1] * last["kl"])


@pytest.mark.ci
def test_a_kl_above_the_target_ends_lower_than_with_a_fixed_coefficient(tmp_path: Path) -> None:
    fixed = trained(tmp_path / "fixed", 8, kl_coef=0.05)
    moved = trained(tmp_path / "moved", 8, kl_coef=0.05, kl_target=0.01, kl_horizon=2)
    assert statistics.fmean(column(moved, "kl")[-3:]) < 0.8 * statistics.fmean(column(fixed, "kl")[-3:])
    assert "kl_coef" not in fixed.history[0]


# ---------------------------------------------------------------- the average of the weights


def test_the_average_follows_the_weights_by_its_decay() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = WeightAverage({"w": weight}, 0.9)
    for value in ([2.0, 2.0], [4.0, 0.0]):
        weight.data = torch.tensor(value)
        average.follow()
    by_hand = [0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4, 0.9 * 2 + 0.1 * 0]
    assert average.average["w"].tolist() == pytest.approx(by_hand)
    with average.in_place():
        assert weight.tolist() == pytest.approx(by_hand)
    assert weight.tolist() == [4.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("adapter", True),
        pytest.param("model", False, marks=pytest.mark.ci),
        pytest.param("head", False, marks=pytest.mark.ci),
    ],
)
def test_the_policy_that_is_left_is_the_average_of_its_steps(tmp_path: Path, kind: str, lora: bool) -> None:
    steps: list[dict[str, torch.Tensor]] = [start(kind=kind, lora=lora)]
    loop = loop_for(tmp_path, 2, kind=kind, lora=lora, ema_decay=0.7)
    loop.optimizer.register_step_post_hook(lambda *_: steps.append(loop.roles.state()))
    loop.train()
    critic = loop.roles.critic_parameters()
    left = loop.roles.state()
    assert len(steps) == 1 + 4
    for name, value in left.items():
        due = steps[0][name]
        for weights in steps[1:]:
            due = 0.7 * due + 0.3 * weights[name]
        due = steps[-1][name] if name in critic else due
        torch.testing.assert_close(value, due, rtol=0, atol=1e-6)
    plain = trained(tmp_path / "plain", 2, kind=kind, lora=lora)
    assert untimed(plain.history) == untimed(loop.history)  # what is sampled and learned is the same
    assert gap(plain.roles.state(), left) > 1e-4


def test_evaluations_see_the_average(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watching:
        def __call__(self, update: int, total: int) -> None:
            seen.append(loop.roles.state())

        def state(self) -> dict[str, Any]:
            return {}

        def load_state(self, state: dict[str, Any]) -> None: ...

    loop = loop_for(tmp_path, 2, ema_decay=0.5, watcher=Watching())
    loop.train()
    assert gap(seen[-1], loop.roles.state(), "lora") == 0.0  # the last evaluation is that of what is left
    assert gap(seen[0], start(), "lora") == 0.0 < gap(seen[1], seen[2], "lora")


# ---------------------------------------------------------------- checkpoints


class _Killed(Exception):
    pass


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"kl_target": 0.5, "kl_horizon": 20, "normalize_scores": "running", "ema_decay": 0.8}
    options |= {"critic_learning_rate": 0.1, "critic_warmup_steps": 3, "policy_starts_after": 1, "lam_value": 1.0}
    whole = trained(tmp_path / "whole", 3, checkpoint_steps=1, **options)
    calls = 0

    def dies(episodes: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise _Killed
        return share_of_a(episodes)

    with pytest.raises(_Killed):
        trained(tmp_path / "cut", 3, checkpoint_steps=1, score=dies, **options)
    resumed = trained(tmp_path / "cut", 3, checkpoint_steps=1, **options)
    assert untimed(resumed.history) == untimed(whole.history)
    assert gap(resumed.roles.state(), whole.roles.state()) == 0.0


# ---------------------------------------------------------------- the critic's own keys


def test_the_critic_has_a_learning_rate_and_warm_up_of_its_own(tmp_path: Path) -> None:
    options = {"learning_rate": 1e-3, "critic_learning_rate": 1e-2, "lr_scheduler_type": "constant_with_warmup"}
    loop = trained(tmp_path, 3, warmup_steps=0, critic_warmup_steps=2, **options)
    assert column(loop, "learning_rate") == pytest.approx([1e-3, 1e-3, 1e-3])
    assert column(loop, "critic_learning_rate") == pytest.approx([0.0, 5e-3, 1e-2])
    critic = {id(one) for one in loop.roles.critic_parameters().values()}
    for group in loop.optimizer.param_groups:
        of_critic = [id(one) in critic for one in group["params"]]
        assert of_critic and (all(of_critic) if "critic" in group else not any(of_critic))
    assert "critic_learning_rate" not in trained(tmp_path / "plain").history[0]


@pytest.mark.parametrize(
    "kind", ["head", *(pytest.param(kind, marks=pytest.mark.ci) for kind in ("adapter", "reward"))]
)
def test_the_policy_waits_while_the_critic_learns(tmp_path: Path, kind: str) -> None:
    first = start(kind=kind)
    loop = loop_for(tmp_path, 3, kind=kind, policy_starts_after=2, vf_coef=1.0)
    for update in (1, 2, 3):
        loop.update(update)
        now, critic = loop.roles.state(), loop.roles.critic_parameters()
        moved = {name for name in now if not torch.equal(now[name], first[name])}
        assert moved & critic.keys()
        assert bool(moved - critic.keys()) == (update == 3)
        if update < 3:
            assert not any(name in loop.optimizer.state for name in loop.trained if name not in critic)


def test_the_critic_learns_returns_of_its_own_lambda(tmp_path: Path) -> None:
    options = {"lam": 0.5, "whiten_advantages": False, "num_ppo_epochs": 1}
    (plain,) = trained(tmp_path / "plain", **options).batches
    (apart,) = trained(tmp_path / "apart", lam_value=1.0, **options).batches
    torch.testing.assert_close(apart.advantages, plain.advantages, rtol=0, atol=0)
    mask = apart.value_mask
    sums = apart.rewards.masked_fill(~mask, 0.0).flip(1).cumsum(1).flip(1)  # lambda 1, gamma 1: the rewards to come
    torch.testing.assert_close(apart.returns[mask], sums[mask], rtol=0, atol=1e-5)
    assert not torch.allclose(plain.returns[mask], sums[mask], atol=1e-3)


def test_the_exact_kl_is_the_sum_over_the_vocabulary(tmp_path: Path) -> None:
    loop = loop_for(tmp_path, 2, kl_estimator="exact", temperature=0.8)
    assert loop.update(1)["kl"] == pytest.approx(0.0, abs=1e-6)
    experience = collect(loop.collector, 2)
    prompt, response = experience.prompts[0], experience.responses[0].ids
    rows = []
    for role in (loop.roles.policy, loop.roles.reference):
        with torch.no_grad():
            logits = role.logits(role.hidden(torch.tensor([[*prompt, *response]])))[0, len(prompt) - 1 : -1]
        rows.append(torch.log_softmax(logits.double() / 0.8, -1).tolist())
    by_hand = [
        sum(math.exp(p) * (p - q) for p, q in zip(own, other, strict=True)) for own, other in zip(*rows, strict=True)
    ]
    assert min(by_hand) >= 0 and max(by_hand) > 1e-4
    assert experience.kl[0, : len(response)].tolist() == pytest.approx(by_hand, abs=1e-5)
    due = float(experience.scores[0]) - 0.05 * sum(by_hand)
    assert float(experience.rewards[0].sum()) == pytest.approx(due, abs=1e-5)
    sampled = loop_for(tmp_path / "k1", 2, temperature=0.8)
    sampled.update(1)
    assert float(collect(sampled.collector, 2).kl.min()) < -1e-4
