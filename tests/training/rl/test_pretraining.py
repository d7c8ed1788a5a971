"""PPO-ptx: a next-token loss on other text, added to each step of the policy."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import BATCH, Seen, column, gap, loop_for, make_roles, trained, untimed
from thread_processes import group, together

from rlhfctl.models.processes import ALONE
from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.ppo_details import Ptx
from rlhfctl.training.rl.experience import TextRow
from rlhfctl.training.rl.orders import Orders
from rlhfctl.training.rl.preparation import make_accelerator
from rlhfctl.training.rl.pretraining import Pretraining

# "a" is followed by "b", "c" by "d", ...; the last rows are held out.
TEXTS: list[TextRow] = [
    {"ids": [2, 3, 4, 5, 2, 3], "start": 1},
    {"ids": [4, 5, 6, 7], "start": 2},
    {"ids": [6, 7, 2, 3, 8, 9], "start": 1},
    {"ids": [8, 9, 2, 3], "start": 1},
    {"ids": [10, 11, 4, 5], "start": 3},
]
HELDOUT: list[TextRow] = [{"ids": [6, 7, 4, 5, 10, 11], "start": 1}, {"ids": [2, 3, 6, 7], "start": 1}]


def by_hand(policy: Any, rows: list[TextRow]) -> tuple[float, int]:
    """The negative log-likelihood of the learned tokens, row by row, by the model's whole logits; and their number."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logprobs = torch.log_softmax(policy.logits(policy.hidden(torch.tensor([row["ids"]])))[0].double(), -1)
            for place in range(row["start"], len(row["ids"])):
                total, count = total - float(logprobs[place - 1, row["ids"][place]]), count + 1
    return total, count


def learner(**options: Any) -> tuple[Any, Pretraining, Ppo]:
    _, roles = make_roles(dtype=torch.float64)
    roles.prepare()
    section = Ppo(per_device_train_batch_size=BATCH, temperature=0.5, ptx=Ptx(**options))
    assert section.ptx is not None
    return roles, Pretraining(section, section.ptx, TEXTS, Orders(1)), section


def gradients(roles: Any) -> dict[str, torch.Tensor]:
    return {name: one.grad.clone() for name, one in roles.trainable().items() if one.grad is not None}


def test_the_loss_is_the_mean_over_the_learned_tokens_at_temperature_1() -> None:
    roles, pretraining, section = learner(coef=3.0)
    shares = pretraining.learn(TEXTS, roles, ALONE, make_accelerator(section))
    total, count = by_hand(roles.policy, TEXTS)
    assert count == 5 + 2 + 5 + 3 + 1
    assert float(sum(share["ptx_loss"] for share in shares)) == pytest.approx(total / count, rel=1e-9)


def test_the_gradient_is_the_coefficient_times_that_of_the_loss() -> None:
    roles, pretraining, section = learner(coef=3.0)
    pretraining.learn(TEXTS, roles, ALONE, make_accelerator(section))
    found = gradients(roles)
    for one in roles.trainable().values():
        one.grad = None
    roles.policy.activate()
    losses = []
    for row in TEXTS:
        logprobs = torch.log_softmax(roles.policy.logits(roles.policy.hidden(torch.tensor([row["ids"]])))[0], -1)
        losses += [-logprobs[place - 1, row["ids"][place]] for place in range(row["start"], len(row["ids"]))]
    (3.0 * torch.stack(losses).mean()).backward()
    due = gradients(roles)
    assert found.keys() == due.keys() and not any("critic" in name for name in found)
    assert gap(found, due) < 1e-9 < max(float(one.abs().max()) for one in due.values())


@pytest.mark.parametrize("size", [1, 2])
def test_rows_in_memory_and_processes_change_nothing(size: int) -> None:
    roles, pretraining, section = learner()
    pretraining.learn(TEXTS, roles, ALONE, make_accelerator(section))
    whole = gradients(roles)
    parts = []
    for own in group(2):
        roles, pretraining, section = learner(batch_size=size)
        pretraining.learn(TEXTS, roles, own, make_accelerator(section))
        parts.append(gradients(roles))
    assert gap({name: parts[0][name] + parts[1][name] for name in whole}, whole) < 1e-12


def test_each_row_comes_once_per_pass_in_an_order_of_its_own() -> None:
    section = Ppo(per_device_train_batch_size=4, num_mini_batches=2, num_ppo_epochs=2, ptx=Ptx(ratio=2.5))
    assert section.ptx is not None
    pretraining = Pretraining(section, section.ptx, TEXTS, Orders(1))
    assert pretraining.rows_per_step == 5
    steps = [pretraining.chosen(update, epoch, part) for update in (1, 2) for epoch in (0, 1) for part in (0, 1)]
    assert all(sorted(row["ids"] for row in rows) == sorted(row["ids"] for row in TEXTS) for rows in steps)
    assert len({str(rows) for rows in steps}) > 4
    assert (
        pretraining.chosen(2, 1, 0) == steps[6] == Pretraining(section, section.ptx, TEXTS, Orders(1)).chosen(2, 1, 0)
    )
    assert Pretraining(section, section.ptx, TEXTS, Orders(2)).chosen(2, 1, 0) != steps[6]


def heldout_loss(loop: Seen) -> float:
    loop.roles.policy.activate()
    total, count = by_hand(loop.roles.policy, HELDOUT)
    return total / count


@pytest.mark.parametrize(("kind", "lora"), [("adapter", True), pytest.param("model", False, marks=pytest.mark.ci)])
def test_it_lowers_the_loss_on_text_that_is_held_out(tmp_path: Path, kind: str, lora: bool) -> None:
    options: dict[str, Any] = {"kind": kind, "lora": lora, "learning_rate": 5e-3}
    without = trained(tmp_path / "without", 4, **options)
    mixed = trained(tmp_path / "mixed", 4, texts=TEXTS, ptx={"coef": 5.0, "ratio": 1.0}, **options)
    start = heldout_loss(loop_for(tmp_path / "start", **options))
    assert heldout_loss(mixed) < start - 0.2 and heldout_loss(mixed) < heldout_loss(without) - 0.2
    losses = column(mixed, "ptx_loss")
    assert losses[-1] < losses[0] - 0.2
    assert "ptx_loss" not in without.history[0]


@pytest.mark.ci
def test_two_processes_and_a_resumed_run_give_one_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"texts": TEXTS, "ptx": {"coef": 1.0, "ratio": 0.375}, "num_mini_batches": 2}
    options |= {"dtype": torch.float64, "ema_decay": 0.9, "checkpoint_steps": 2}
    options |= {"kl_target": 0.5, "kl_horizon": 20, "normalize_scores": "running", "kl_estimator": "exact"}
    one = trained(tmp_path / "one", 3, **options)
    loops = [
        loop_for(tmp_path / str(own.number), 3, run={"processes": own}, **options) for own in group(2)
    ]  # two rows per step: one for each process
    together([loop.train for loop in loops])
    for loop in loops:
        assert gap(loop.roles.state(), one.roles.state()) < 1e-10
        for mine, its in zip(untimed(loop.history), untimed(one.history), strict=True):
            assert mine == pytest.approx(its, abs=1e-6)
    folder = tmp_path / "cut"
    cut = loop_for(folder, 3, **options)
    cut.section = cut.section.model_copy(update={"total_episodes": 2 * BATCH})
    cut.train()
    again = trained(folder, 3, **options)
    assert len(again.batches) == 1 and untimed(again.history) == untimed(one.history)
    assert gap(again.roles.state(), one.roles.state()) == 0.0


def test_it_learns_text_while_the_reward_says_nothing(tmp_path: Path) -> None:
    loop = trained(
        tmp_path, 2, texts=TEXTS, ptx={"coef": 1.0}, score=lambda episodes: [0.0] * len(episodes), kl_coef=0.0,
        whiten_advantages=False, vf_coef=1e-9,
    )  # fmt: skip
    assert statistics.fmean(column(loop, "policy_loss")) == pytest.approx(0.0, abs=1e-6)
    assert column(loop, "ptx_loss")[1] < column(loop, "ptx_loss")[0]


@pytest.mark.parametrize("algorithm", ["reinforce", pytest.param("grpo", marks=pytest.mark.ci)])
def test_algorithms_without_a_critic_learn_text_too(tmp_path: Path, algorithm: str) -> None:
    options: dict[str, Any] = {"kind": None, "algorithm": algorithm, "num_generations": 2, "kl_coef": 0.3}
    adaptive = {"kl_target": 0.01, "kl_horizon": 20} if algorithm == "reinforce" else {}
    loop = trained(tmp_path, 3, texts=TEXTS, ptx={"coef": 1.0, "ratio": 1.0}, ema_decay=0.5, **adaptive, **options)
    assert column(loop, "ptx_loss")[-1] < column(loop, "ptx_loss")[0]
    if adaptive:
        batch, coefficients = loop.batches[-1], column(loop, "kl_coef")
        assert len(set(coefficients)) == 3
        torch.testing.assert_close(
            batch.rewards.sum(1), batch.scores - coefficients[-1] * batch.kl.sum(1), rtol=0, atol=1e-5
        )
