"""TRPO's step: inside its trust region, better by its surrogate, and the same however the batch is divided."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import Seen, column, gap, loop_for, make_roles, nothing, share_of_a, trained, untimed
from thread_processes import group, together
from torch import Tensor

from rlhfctl.generation.kl import exact_kl
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences
from rlhfctl.rewards.episode import Episode
from rlhfctl.training.rl import fisher
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.natural_gradient import conjugate_gradient

LORA: dict[str, Any] = {"algorithm": "trpo", "dtype": torch.float64, "per_device_train_batch_size": 16}
WIDE = LORA | {"kind": "model", "lora": False}  # of two layers: products are quicker without adapters


def of_policy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: w for n, w in state.items() if not n.startswith("critic.") and ".critic." not in n}


# ---------------------------------------------------------------- the step


@pytest.mark.parametrize(
    ("number", "kind", "lora", "temperature"),
    [
        (1, "adapter", True, 1.0),
        pytest.param(2, "reward", True, 0.7, marks=pytest.mark.ci),
        (3, "model", False, 1.0),
        pytest.param(4, "reward", False, 1.3, marks=pytest.mark.ci),
    ],
)
def test_a_step_improves_the_surrogate_within_its_bound(
    number: int, kind: str, lora: bool, temperature: float, tmp_path: Path
) -> None:
    """KL and surrogate are computed again from the two policies, by code that the step does not use.

    Each case has the responses of another update, `number`.
    """
    olds: list[LanguageModel] = []

    def keep(loop: Seen, _: Experience) -> None:
        olds.append(copy_of(loop.roles.policy))

    options = LORA | {"kind": kind, "lora": lora, "temperature": temperature, "trpo": {"max_kl": 0.005}}
    loop = trained(tmp_path, number, change=keep, run={"first": number - 1}, **options)
    (entry,), (batch,) = loop.history, loop.batches
    tokens, new = int(batch.lengths.sum()), copy_of(loop.roles.policy)
    given = (batch.prompts, [response.ids for response in batch.responses], 1)
    kl = sum(exact_kl(olds[0], new, *given, temperature=temperature)) / tokens
    assert entry["trust_kl"] == pytest.approx(kl, rel=1e-3)
    assert 0.001 < kl <= 0.005
    sequences = Sequences.of(batch.prompts, given[1], "cpu")
    with torch.no_grad():
        ratios = [one.response_logprobs(sequences, temperature) for one in (new, olds[0])]
    ratio = (ratios[0] - ratios[1]).exp()
    gain = float(((ratio - 1) * batch.advantages[batch.response_mask]).sum()) / tokens
    assert entry["surrogate_gain"] == pytest.approx(gain, rel=1e-3) and gain > 0.0
    assert entry["step_refused"] == 0.0
    assert entry["step_fraction"] == pytest.approx(0.8 ** (entry["line_search_steps"] - 1))


def copy_of(policy: LanguageModel) -> LanguageModel:
    return LanguageModel(copy.deepcopy(policy.model), policy.pad_token_id, policy.adapter)


def test_the_direction_for_a_linear_softmax_is_the_one_by_hand() -> None:
    """Only the output layer is trained: F is the mean of S (x) h h', solved by linear algebra."""
    _, roles = make_roles("model", False, torch.float64)
    policy = roles.policy
    policy.model.requires_grad_(False)
    weight = policy.head.weight.requires_grad_()
    sequences = Sequences.of([[2, 3], [4], [5, 6]], [[2, 3, 0], [4, 4], [5, 0]], "cpu")
    hidden = policy.states(sequences, sequences.before_tokens()).detach()
    logits = policy.logits(hidden)
    p = logits.softmax(-1)
    fisher_matrix = sum(
        torch.kron(torch.diag(row) - torch.outer(row, row), torch.outer(h, h))
        for row, h in zip(p.detach(), hidden, strict=True)
    ) / len(hidden)
    advantages = torch.linspace(-1, 1, len(hidden), dtype=torch.float64)
    surrogate = (advantages * logits.log_softmax(-1).gather(-1, sequences.tokens()[:, None]).squeeze(-1)).mean()
    (gradient,) = torch.autograd.grad(surrogate, [weight])

    def product(vector: Tensor) -> Tensor:
        given = ({"lm_head.weight": weight}, {"lm_head.weight": vector.view_as(weight)})
        return fisher.fisher_product(policy, sequences, *given, 1.0)["lm_head.weight"].reshape(-1) / len(hidden)

    damping = 1e-3
    by_hand = torch.linalg.solve(
        fisher_matrix + damping * torch.eye(len(fisher_matrix), dtype=torch.float64), gradient.reshape(-1)
    )
    found = conjugate_gradient(product, gradient.reshape(-1), 200, damping)
    assert torch.allclose(found, by_hand, rtol=1e-3, atol=1e-3 * float(by_hand.abs().max()))
    assert torch.cosine_similarity(found, gradient.reshape(-1), dim=0) < 0.9  # it is not the gradient's direction


def test_without_anything_to_gain_the_policy_stays_bit_for_bit(tmp_path: Path) -> None:
    """The critic expects 0 and the score is 0: there is no gradient, hence no direction."""
    options: dict[str, Any] = {"kind": "model", "lora": False, "algorithm": "trpo", "kl_coef": 0.0}
    loop = trained(tmp_path, 1, score=nothing, **options)
    assert gap(of_policy(loop.roles.state()), of_policy(loop_for(tmp_path / "start", **options).roles.state())) == 0.0
    (entry,) = loop.history
    assert (entry["step_refused"], entry["trust_kl"], entry["surrogate_gain"]) == (1.0, 0.0, 0.0)


def test_a_step_that_the_line_search_refuses_is_taken_back(tmp_path: Path) -> None:
    """With few responses the KL is not quadratic as far as the whole step goes, and only that one is tried."""
    options = LORA | {"per_device_train_batch_size": 8, "trpo": {"max_kl": 0.02, "line_search_max_iter": 1}}
    loop = trained(tmp_path / "one", 1, **options)
    (entry,) = loop.history
    assert (entry["step_refused"], entry["line_search_steps"], entry["step_fraction"]) == (1.0, 1.0, 0.0)
    begun = loop_for(tmp_path / "start", **options).roles.state()
    assert gap(of_policy(loop.roles.state()), of_policy(begun)) == 0.0
    assert gap(loop.roles.state(), begun, ".critic.") > 1e-4  # the critic learns all the same
    options["trpo"] = {"max_kl": 0.02, "line_search_max_iter": 20, "line_search_shrinking_factor": 0.5}
    (entry,) = trained(tmp_path / "many", 1, **options).history
    assert entry["step_refused"] == 0.0 and entry["line_search_steps"] > 1.0
    assert entry["step_fraction"] == pytest.approx(0.5 ** (entry["line_search_steps"] - 1))


@pytest.mark.parametrize("changed", [{"cg_max_steps": 2}, {"cg_damping": 1.0}, {"max_kl": 0.001}])
def test_each_setting_of_the_trust_region_changes_the_step(changed: dict[str, Any], tmp_path: Path) -> None:
    usual, other = (trained(tmp_path / str(n), 1, **WIDE, trpo=t) for n, t in enumerate(({}, changed)))
    assert gap(of_policy(usual.roles.state()), of_policy(other.roles.state())) > 1e-4
    assert other.history[0]["trust_kl"] <= changed.get("max_kl", 0.01)


def test_the_entropy_bonus_is_part_of_what_a_step_improves(tmp_path: Path) -> None:
    options = WIDE | {"score": nothing, "kl_coef": 0.0}
    loop = trained(tmp_path, 3, entropy_coef=1.0, **options)
    entropies = column(loop, "policy_entropy")
    assert entropies[-1] > entropies[0] + 0.05


# ---------------------------------------------------------------- however the work is divided


@pytest.mark.parametrize(
    "changed",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"gradient_checkpointing": True},
    ],
)
def test_micro_batches_and_checkpointing_change_only_rounding(changed: dict[str, Any], tmp_path: Path) -> None:
    one, other = trained(tmp_path / "a", 1, **WIDE), trained(tmp_path / "b", 1, **WIDE | changed)
    assert gap(one.roles.state(), other.roles.state()) < 1e-6
    assert gap(one.roles.state(), loop_for(tmp_path / "start", **WIDE).roles.state()) > 1e-3


def test_two_processes_train_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to rounding: plain attention has its softmax in float32, over groups of other sequences."""
    # Here processes are threads, and torch has one level of dual numbers for all of them.
    change, lock = fisher._change, threading.Lock()

    def one_at_a_time(*given: Any) -> Tensor:
        with lock:
            return change(*given)

    monkeypatch.setattr(fisher, "_change", one_at_a_time)
    section = WIDE | {"entropy_coef": 0.01, "num_mini_batches": 2, "trace_every": 1}
    one = trained(tmp_path / "one", 1, **section)
    many = [loop_for(tmp_path / f"process-{own.number}", 1, run={"processes": own}, **section) for own in group(2)]
    together([loop.train for loop in many])
    for loop in many:
        assert gap(loop.roles.state(), one.roles.state()) < 1e-5
        assert gap(loop.roles.state(), many[0].roles.state()) == 0.0
        for mine, its in zip(untimed(loop.history), untimed(one.history), strict=True):
            assert mine == pytest.approx(its, abs=1e-4)
    first, its = (tmp_path / name / "traces" / "update-000001.jsonl" for name in ("process-0", "one"))
    for mine, other in zip(first.read_text().splitlines(), its.read_text().splitlines(), strict=True):
        epochs = [json.loads(line)["epochs"] for line in (mine, other)]
        assert [one["ratio"] for one in epochs[0]] == [pytest.approx(one["ratio"], abs=1e-4) for one in epochs[1]]


# ---------------------------------------------------------------- the loop


def test_the_policy_moves_once_per_update_and_the_critic_in_every_minibatch(tmp_path: Path) -> None:
    loop = trained(tmp_path, 1, num_mini_batches=2, num_ppo_epochs=3, trace_every=1, **WIDE)
    (entry,) = loop.history
    assert entry["optimizer_steps"] == 6.0
    line = json.loads((tmp_path / "traces" / "update-000001.jsonl").read_text().splitlines()[0])
    first, *later = line["epochs"]
    assert first["ratio"] == [1.0] * len(line["ids"])
    assert later[0]["ratio"] == later[1]["ratio"] != first["ratio"]
    assert first["values"] != later[0]["values"] != later[1]["values"]
    held = {id(weight) for weight in loop.optimizer.state}
    assert held == {id(weight) for weight in loop.roles.critic_parameters().values()}


def test_a_head_that_leaves_the_trunk_alone_learns_beside_the_policy(tmp_path: Path) -> None:
    parts = LORA | {"kind": "head", "critic": "head", "critic_trains_trunk": False}
    loop = trained(tmp_path, 1, **parts)
    begun = loop_for(tmp_path / "start", **parts).roles.state()
    assert gap(loop.roles.state(), begun, "critic.score") > 1e-4
    (entry,) = loop.history
    assert entry["step_refused"] == 0.0 and entry["trust_kl"] <= 0.01


@pytest.mark.ci
def test_trpo_teaches_the_policy_to_say_a(tmp_path: Path) -> None:
    options = WIDE | {
        "dtype": torch.float32,
        "per_device_train_batch_size": 32,
        "kl_coef": 0.0,
        "trpo": {"max_kl": 0.03},
    }
    score = column(trained(tmp_path, 25, **options), "score")
    assert sum(score[-3:]) / 3 > sum(score[:3]) / 3 + 0.3, score


def test_a_run_that_goes_on_ends_bit_for_bit_as_if_undisturbed(tmp_path: Path) -> None:
    class Stop(Exception):
        """Stands for a kill."""

    def stop(late: Seen, _: Experience) -> None:
        if late.done == 2:
            raise Stop

    options: dict[str, Any] = {"algorithm": "trpo", "checkpoint_steps": 1, "kind": "model", "lora": False}
    whole = trained(tmp_path / "whole", 4, **options)
    with pytest.raises(Stop):
        loop_for(tmp_path / "stopped", 4, change=stop, **options).train()
    again = trained(tmp_path / "stopped", 4, **options)
    assert len(again.batches) == 2
    assert gap(again.roles.state(), whole.roles.state()) == 0.0
    assert untimed(again.history) == untimed(whole.history)


def test_a_number_that_is_not_finite_reaches_no_weight(tmp_path: Path) -> None:
    calls: list[int] = []

    def once(episodes: Sequence[Episode]) -> list[float]:
        calls.append(1)
        return [float("nan")] * len(episodes) if len(calls) == 2 else share_of_a(episodes)

    loop = trained(tmp_path, 3, kind="model", lora=False, algorithm="trpo", score=once)
    assert loop.attempt == 1 and loop.done == 3
    assert all(bool(torch.isfinite(weight).all()) for weight in loop.roles.state().values())
