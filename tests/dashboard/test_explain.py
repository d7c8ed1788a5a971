"""The explanation of a token: its numbers, worked out from the trace alone, are those of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_loops import BATCH, Seen, trained, trained_on_rounded_samples

from rlhfctl.dashboard import explain

SETTINGS: list[dict[str, Any]] = [
    {"kl_estimator": "k1", "num_mini_batches": 2, "missing_eos_penalty": 1.0},
    {"kl_estimator": "k2", "whiten_rewards": True, "whiten_advantages": False, "missing_eos_score": -2.0, "gamma": 0.9},
    {"kl_estimator": "k3", "lam": 0.3, "top_k": 5, "whiten_rewards": True, "num_mini_batches": 4},
    {"kind": "head", "lam": 1.0, "target_kl": 1e-4, "temperature": 0.7},
    {"importance_cap": 1.001, "num_mini_batches": 2, "make": trained_on_rounded_samples},
    {
        "kl_estimator": "exact",
        "kl_target": 0.5,
        "kl_horizon": 20,
        "normalize_scores": "running",
        "score_clip": [-0.8, 1.5],
        "lam_value": 1.0,
        "lam": 0.5,
        "missing_eos_penalty": 0.5,
    },
    {"kind": "model", "lam": 0.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
]


def traced(tmp_path: Path, **options: Any) -> tuple[Seen, list[list[dict[str, Any]]]]:
    """Train for three updates that trace every episode; return the loop and the records of each update."""
    loop = options.pop("make", trained)(
        tmp_path,
        3,
        trace_every=1,
        trace_episodes=99,
        kl_coef=0.3,
        cliprange=0.05,
        cliprange_value=0.02,
        num_ppo_epochs=3,
        **options,
    )
    files = sorted((tmp_path / "traces").iterdir())
    return loop, [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda one: "-".join(map(str, one)))
def test_the_trace_alone_gives_the_numbers_and_the_logged_losses(options: dict[str, Any], tmp_path: Path) -> None:
    loop, updates = traced(tmp_path, **options)
    settings = loop.section.model_dump(mode="json")
    assert len(updates) == 3
    assert (updates[0][0]["importance"] is not None) is ("importance_cap" in options)
    for records, logged in zip(updates, loop.history, strict=True):
        for record in records:
            worked = explain.work_out(record, settings)
            assert worked.kl == pytest.approx(record["kl"], abs=1e-5)
            assert worked.score == pytest.approx(record["score"], abs=1e-5)
            assert worked.rewards == pytest.approx(record["rewards"], abs=1e-5)
            assert worked.deltas == pytest.approx(record["deltas"], abs=1e-5)
            assert worked.advantages == pytest.approx(record["advantages"], abs=1e-5)
            assert worked.returns == pytest.approx(record["returns"], abs=1e-5)
        found = explain.batch_losses(records, settings, logged)
        assert found.traced == found.episodes == BATCH
        for name in ("policy_loss", "value_loss", "approx_kl", "ratio"):
            assert found.computed[name] == pytest.approx(logged[name], abs=1e-5), name
        for name in ("clip_fraction", "value_clip_fraction"):
            assert found.computed[name] == pytest.approx(logged[name], abs=1e-5), name
            assert found.logged[name] == logged[name]
    assert abs(logged["policy_loss"]) > 1e-3 and logged["value_loss"] > 1e-3


def test_every_step_of_every_token_agrees_with_the_record(tmp_path: Path) -> None:
    loop, updates = traced(tmp_path, **SETTINGS[2], missing_eos_penalty=1.0)
    settings = loop.section.model_dump(mode="json")
    names = set()
    for record in updates[-1]:
        for position in range(len(record["values"])):
            steps = explain.explain(record, settings, position)
            assert all(step.agrees for step in steps), [step for step in steps if not step.agrees]
            names |= {step.name for step in steps if step.recorded is not None}
    assert names == {
        "KL (k3)", "score", "reward, whitened", "delta", "  if lam were 0", "  if lam were 1", "return",
        "advantage, whitened", *(f"epoch {number}: ratio" for number in (1, 2, 3)),
    }  # fmt: skip


def record_by_hand() -> dict[str, Any]:
    """One response of two tokens that was cut off: numbers that can be worked out in the head."""
    epoch = {"minibatch": 0, "logprobs": [-1.0, -1.0], "ratio": [1.0, 1.0], "clipped": [False, False]}
    return {
        "update": 1, "episode": 0, "prompt": "p", "response": "ab", "tokens": ["a", "b"], "ids": [2, 3],
        "ended": False, "raw_score": 3.0, "score": 2.0, "reward_parts": {"reward": 2.0, "m:f": 2.0},
        "policy_logprobs": [-1.0, -1.0], "reference_logprobs": [-1.5, -0.5], "kept_logprobs": [0.0, 0.0],
        "kl": [0.5, -0.5], "rewards": [-0.05, 2.05], "values": [1.0, 1.5], "deltas": [0.45, 0.55],
        "advantages": [0.725, 0.55], "returns": [1.725, 2.05], "reward_mean": None, "reward_std": None,
        "advantage_mean": None, "advantage_std": None, "epochs": [epoch | {"values": [1.0, 1.5]}],
    }  # fmt: skip


BY_HAND: dict[str, Any] = {
    "kl_estimator": "k1", "kl_coef": 0.1, "missing_eos_penalty": 1.0, "missing_eos_score": None, "gamma": 1.0,
    "lam": 0.5, "whiten_rewards": False, "whiten_advantages": False, "cliprange": 0.2, "cliprange_value": 0.2,
    "rewards": {"reward": 1.0, "m:f": 0.5}, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
    "vf_coef": 0.1, "entropy_coef": 0.0,
}  # fmt: skip


def test_the_formulas_hold_this_tokens_numbers() -> None:
    steps = {step.name: step for step in explain.explain(record_by_hand(), BY_HAND, 0)}
    assert all(step.agrees for step in steps.values())
    assert steps["KL (k1)"].worked == "-1 - (-1.5)" and steps["KL (k1)"].value == 0.5
    assert steps["score"].worked == "1 x 2 + 0.5 x 2 - 1" and "did not end by itself" in steps["score"].formula
    assert steps["reward"].worked == "-0.1 x 0.5" and "position 1, the last token" in steps["reward"].formula
    assert steps["delta"].worked == "-0.05 + 1 x 1.5 - 1"
    assert steps["advantage (GAE)"].worked == "0.45 + 0.5 x 0.55"
    assert steps["  if lam were 0"].value == pytest.approx(0.45)
    assert steps["  if lam were 1"].worked == "(-0.05) + 2.05 - 1"
    assert steps["return"].worked == "0.725 + 1"
    assert steps["advantage (GAE)"].value == pytest.approx(0.725)
    assert steps["  if lam were 1"].value == pytest.approx(1.0)
    assert steps["epoch 1: objective"].value == pytest.approx(0.725)
    assert steps["epoch 1: value loss"].value == pytest.approx(0.725**2 / 2)
    last = {step.name: step for step in explain.explain(record_by_hand(), BY_HAND, 1)}
    assert last["reward"].formula == "-kl_coef x KL + score" and last["reward"].worked == "-0.1 x (-0.5) + 2"


def test_a_number_that_is_not_what_the_formula_gives_is_seen() -> None:
    wrong = record_by_hand() | {"deltas": [0.46, 0.55]}
    steps = {step.name: step for step in explain.explain(wrong, BY_HAND, 0)}
    assert not steps["delta"].agrees and steps["return"].agrees


def test_losses_are_added_up_only_from_a_whole_batch() -> None:
    record = record_by_hand()
    few = explain.batch_losses([record], BY_HAND, {"policy_loss": 1.0})
    assert (few.traced, few.episodes, few.computed, few.logged) == (1, 2, {}, {})
    whole = explain.batch_losses([record, record], BY_HAND, {"policy_loss": 1.0})
    assert whole.computed["policy_loss"] == pytest.approx(-(0.725 + 0.55) / 2) and whole.logged == {"policy_loss": 1.0}
    assert whole.objective == "policy_loss + 0.1 x value_loss (vf_coef)"
    older = [record | {"epochs": [{"logprobs": [-1.0, -1.0]}]}] * 2
    assert explain.batch_losses(older, BY_HAND, {}).computed == {}


def test_an_older_trace_without_the_batchs_numbers_is_explained_by_what_it_recorded() -> None:
    record = record_by_hand() | {"advantages": [1.5, -1.5]}
    older = {name: value for name, value in record.items() if not name.startswith(("kept", "advantage_", "reward_m"))}
    steps = {step.name: step for step in explain.explain(older, BY_HAND | {"whiten_advantages": True}, 0)}
    assert steps["advantage, whitened"].value == 1.5 and "older version" in steps["advantage, whitened"].worked


# ---------------------------------------------------------------- the other algorithms

OTHERS: list[dict[str, Any]] = [
    {"algorithm": "a2c", "gamma": 0.9, "kl_estimator": "k3"},
    {"algorithm": "reinforce", "missing_eos_penalty": 1.0, "kl_estimator": "k2"},
    {"algorithm": "rloo", "num_generations": 4},
    {"algorithm": "grpo", "num_generations": 4, "num_mini_batches": 2, "top_k": 5},
    {"algorithm": "grpo", "num_generations": 2, "loss_type": "dr_grpo", "scale_rewards": "none"},
    {"algorithm": "grpo", "num_generations": 8, "loss_type": "dapo", "scale_rewards": "batch"},
    {"algorithm": "trpo", "num_mini_batches": 2},
    {"algorithm": "nlpo", "nlpo": {"top_mask": 0.7}},
]
QUICK = [OTHERS[2], OTHERS[3], OTHERS[6]]
OF_A_CRITIC = ("delta", "advantage (GAE)", "return")


@pytest.mark.parametrize(
    "options", [one if one in QUICK else pytest.param(one, marks=pytest.mark.ci) for one in OTHERS], ids=str
)
def test_the_trace_of_another_algorithm_gives_its_numbers_and_losses(options: dict[str, Any], tmp_path: Path) -> None:
    algorithm = options["algorithm"]
    has_critic, has_ratio = algorithm in ("a2c", "trpo", "nlpo"), algorithm in ("grpo", "trpo", "nlpo")
    loop, updates = traced(tmp_path, kind="adapter" if has_critic else None, **options)
    settings = loop.section.model_dump(mode="json")
    for records, logged in zip(updates, loop.history, strict=True):
        found = explain.batch_losses(records, settings, logged)
        assert found.computed.keys() <= logged.keys()
        assert found.computed == pytest.approx({name: logged[name] for name in found.computed}, abs=1e-5)
        assert ("clip_fraction" in found.computed) is (algorithm in ("grpo", "nlpo"))
        assert found.objective == ("policy_loss + 0.1 x value_loss (vf_coef)" if has_critic else "policy_loss")
    assert abs(logged["policy_loss"]) > 1e-4
    for record in updates[-1]:
        assert explain.can_explain(record)
        steps = explain.explain(record, settings, 0)
        assert all(step.agrees for step in steps), [step for step in steps if not step.agrees]
        names = [step.name for step in steps]
        assert [name in names for name in OF_A_CRITIC] == [has_critic] * 3
        assert ("R, of the response" in names) is not has_critic
        assert ("scale" in names) is (settings.get("scale_rewards", "none") != "none")
        assert ("epoch 1: KL in the loss" in names) is (algorithm == "grpo")
        assert ("epoch 1: ratio" in names) is ("epoch 2: objective" in names) is has_ratio


def test_a_wrong_advantage_of_a_response_is_seen(tmp_path: Path) -> None:
    loop, updates = traced(tmp_path, kind=None, **OTHERS[2])
    record, settings = updates[-1][0], loop.section.model_dump(mode="json")
    wrong = record | {"advantages": [one + 0.01 for one in record["advantages"]]}
    steps = {step.name: step for step in explain.explain(wrong, settings, 0)}
    assert not steps["advantage"].agrees and steps["R, of the response"].agrees
