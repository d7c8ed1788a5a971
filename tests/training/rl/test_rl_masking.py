"""NLPO in the loop: an older policy restricts sampling and learning alike, and is renewed on schedule."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_loops import BATCH, KINDS_AND_LORA, Seen, column, gap, loop_for, trained, untimed
from small_roles import base, stir_adapters
from thread_processes import group, together
from torch import Tensor

from rlhfctl.models.packing import Sequences
from rlhfctl.models.tensors import unpacked_bits
from rlhfctl.recipe.schema import Lora, Ppo
from rlhfctl.training.rl import masking
from rlhfctl.training.rl.collect import token_logprobs
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.roles import build_roles

NLPO: dict[str, Any] = {"algorithm": "nlpo", "nlpo": {"top_mask": 0.7, "target_update_iterations": 2}}


def of_masking(loop: Seen) -> dict[str, Tensor]:
    """The masking policy's weights under the policy's names."""
    return {
        name.removeprefix("masking.").replace(".masking.", ".default."): weight.detach().clone()
        for name, weight in masking.weights_of(loop.roles.masking).items()
    }


def of_policy(loop: Seen) -> dict[str, Tensor]:
    return {name.removeprefix("policy."): w.detach().clone() for name, w in loop.roles.policy_parameters().items()
            if name.startswith("policy.")}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "lora"),
    [pair if pair == ("head", False) else pytest.param(*pair, marks=pytest.mark.ci) for pair in KINDS_AND_LORA],
)
def test_with_the_whole_distribution_allowed_it_is_ppo(kind: str, lora: bool, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"kind": kind, "lora": lora, "dtype": torch.float64, "entropy_coef": 0.01}
    ppo = trained(tmp_path / "ppo", 3, **parts)
    nlpo = trained(tmp_path / "nlpo", 3, algorithm="nlpo", nlpo={"top_mask": 1.0}, **parts)
    ours = nlpo.roles.state()
    assert gap({name: ours[name] for name in ppo.roles.state()}, ppo.roles.state()) < 1e-9
    for mine, its in zip(untimed(nlpo.history), untimed(ppo.history), strict=True):
        assert (mine.pop("mask_kept"), mine.pop("mask_size")) == (pytest.approx(1.0), 12.0)
        assert mine == pytest.approx(its, abs=1e-9)


@pytest.mark.parametrize(("lora", "kind"), [(True, "adapter"), (False, "head")])
def test_the_masking_policy_is_renewed_on_schedule_and_never_trained(lora: bool, kind: str, tmp_path: Path) -> None:
    masks: list[dict[str, Tensor]] = []
    policies: list[dict[str, Tensor]] = []

    def keep(loop: Seen, _: Experience) -> None:
        masks.append(of_masking(loop))
        policies.append(of_policy(loop))

    loop = trained(tmp_path, 5, kind=kind, lora=lora, change=keep, **NLPO)
    assert gap(masks[0], policies[0]) == 0.0
    assert gap(masks[1], policies[0]) == 0.0 and gap(policies[1], policies[0]) > 1e-3
    assert gap(masks[2], policies[2]) == 0.0 and gap(masks[3], policies[2]) == 0.0
    assert gap(masks[4], policies[4]) == 0.0
    assert not any(weight.requires_grad for weight in masking.weights_of(loop.roles.masking).values())


def test_no_token_outside_the_mask_is_learned_from_and_sampling_agrees_with_learning(tmp_path: Path) -> None:
    loop = loop_for(tmp_path, 4, change=_checks_sets, **NLPO)
    loop.train()
    assert len(loop.batches) == 4
    assert loop.history[0]["rollout_gap"] < 1e-5
    assert not loop.recomputes
    sizes, kept = column(loop, "mask_size"), column(loop, "mask_kept")
    assert all(1.0 <= size < 12.0 for size in sizes) and all(0.3 < share < 1.0 for share in kept)


def _checks_sets(loop: Seen, batch: Experience) -> None:
    everyone = range(BATCH)
    packed = batch.allowed(everyone)
    assert packed is not None
    allowed = unpacked_bits(packed, 12)
    tokens = torch.tensor([token for response in batch.responses for token in response.ids])
    assert allowed.gather(-1, tokens[:, None]).all() and allowed[:, 0].all()  # 0 is the end
    with torch.no_grad():
        among = token_logprobs(batch, loop.roles.policy, loop.section, masked=True)
        sequences = Sequences.of(batch.prompts, [response.ids for response in batch.responses], "cpu")
        logits = loop.roles.policy.logits(loop.roles.policy.states(sequences, sequences.before_tokens()))
        by_hand = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    assert torch.allclose(among[batch.response_mask], by_hand, atol=1e-5)
    assert torch.allclose(batch.logprobs[batch.response_mask], by_hand, atol=1e-5)
    assert torch.allclose(batch.kl[batch.response_mask], (batch.logprobs - batch.ref_logprobs)[batch.response_mask])


def test_the_first_step_learns_with_the_probabilities_of_sampling(tmp_path: Path) -> None:
    """Before it the policy is the one that sampled: ratios are 1, the entropy is over the allowed tokens."""
    loop = trained(tmp_path, 1, num_ppo_epochs=1, entropy_coef=1e-6, trace_every=1, **NLPO)
    (entry,) = loop.history
    assert entry["ratio"] == pytest.approx(1.0, abs=1e-5) and entry["approx_kl"] < 1e-9
    assert entry["policy_entropy"] < math.log(entry["mask_size"])
    line = json.loads((tmp_path / "traces" / "update-000001.jsonl").read_text().splitlines()[0])
    assert line["epochs"][0]["ratio"] == pytest.approx([1.0] * len(line["ids"]), abs=1e-5)
    assert line["epochs"][0]["logprobs"] == pytest.approx(line["policy_logprobs"], abs=1e-5)
    assert line["kept_logprobs"] == [0.0] * len(line["ids"])  # it is in the log-probabilities already


@pytest.mark.parametrize("changed", [{"top_mask": 0.4}, {"target_update_iterations": 1}])
def test_each_setting_of_the_mask_changes_the_run(changed: dict[str, Any], tmp_path: Path) -> None:
    usual = trained(tmp_path / "usual", 3, **NLPO)
    other = trained(tmp_path / "other", 3, algorithm="nlpo", nlpo=NLPO["nlpo"] | changed)
    assert gap(usual.roles.state(), other.roles.state()) > 1e-3


def test_nlpo_teaches_the_policy_to_say_a(tmp_path: Path) -> None:
    options = NLPO | {"learning_rate": 2e-2, "kl_coef": 0.0}
    score = column(trained(tmp_path, 25, **options), "score")
    assert sum(score[-3:]) / 3 > sum(score[:3]) / 3 + 0.3, score


@pytest.mark.parametrize(("lora", "kind"), [(True, "adapter"), pytest.param(False, "head", marks=pytest.mark.ci)])
def test_a_run_that_goes_on_ends_bit_for_bit_as_if_undisturbed(lora: bool, kind: str, tmp_path: Path) -> None:
    """It stops between two renewals: the masking policy is then neither the policy nor the start."""

    class Stop(Exception):
        """Stands for a kill."""

    def stop(late: Seen, _: Experience) -> None:
        if late.done == 3:
            raise Stop

    options = NLPO | {"kind": kind, "lora": lora, "checkpoint_steps": 1}
    whole = trained(tmp_path / "whole", 5, **options)
    with pytest.raises(Stop):
        loop_for(tmp_path / "stopped", 5, change=stop, **options).train()
    again = trained(tmp_path / "stopped", 5, **options)
    assert len(again.batches) == 2
    assert gap(again.roles.state(), whole.roles.state()) == 0.0
    assert untimed(again.history) == untimed(whole.history)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    section = NLPO | {"dtype": torch.float64, "num_mini_batches": 2}
    one = trained(tmp_path / "one", 3, **section)
    many = [loop_for(tmp_path / f"process-{own.number}", 3, run={"processes": own}, **section) for own in group(2)]
    together([loop.train for loop in many])
    for loop in many:
        assert gap(loop.roles.state(), one.roles.state()) < 1e-9
        for mine, its in zip(untimed(loop.history), untimed(one.history), strict=True):
            assert mine == pytest.approx(its, abs=1e-6)
        for mine, its in zip(loop.batches, one.batches, strict=True):
            assert [r.allowed for r in mine.responses] == [r.allowed for r in its.responses]


@pytest.mark.parametrize("lora", [Lora(r=4, lora_alpha=8, lora_dropout=0.1), None])
def test_roles_of_the_recipe_have_a_masking_policy_that_equals_the_policy(lora: Lora | None) -> None:
    """A function scores, so that no model but base* is loaded; with another algorithm there is no masking policy."""
    models: Any = SimpleNamespace(
        shared_reward_adapters=lambda: [], has_reward=False, classifier=lambda: None, start_model=lambda: None,
        start_adapter=lambda: None, critic_adapter=lambda: None, critic_model=lambda: None, note=lambda message: None,
    )  # fmt: skip
    section = Ppo(algorithm="nlpo", lora=lora)
    roles, _ = build_roles(section, base()[1], 1, models, seed=0)
    roles.prepare()
    assert roles.masking is not None and roles.masking.switch is roles.policy.switch
    assert (roles.masking.model is roles.policy.model) is (lora is not None)
    rows = Sequences.of([[2, 3], [4]], [[5, 0], [6, 7]], "cpu")
    stir_adapters(roles.policy.model, only=".default." if lora else "o_proj")
    with torch.no_grad():
        before = [one.response_logprobs(rows, 1.0) for one in (roles.policy, roles.masking)]
        masking.sync(roles.masking, roles.policy)
        after = [one.response_logprobs(rows, 1.0) for one in (roles.policy, roles.masking)]
    assert not torch.allclose(before[0], before[1], atol=1e-3)
    assert torch.allclose(after[0], after[1], atol=1e-6)
    assert {name.split(".")[0] for name in roles.state()} == {"policy", "critic", "masking"}
    assert build_roles(Ppo(lora=lora), base()[1], 1, models, seed=0)[0].masking is None
