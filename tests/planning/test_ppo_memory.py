"""The memory of ppo: roles, cache, steps."""

from __future__ import annotations

from typing import Any

import pytest
from small_specs import LAYERS, VOCABULARY, WIDTH, shape

from rlhfctl.planning import memory, ppo_memory
from rlhfctl.planning.memory import BASE, ModelSpec
from rlhfctl.planning.meter import (
    ACTIVATIONS,
    CACHE,
    GRADIENTS,
    LOGITS,
    OPTIMIZER,
    WEIGHTS,
)
from rlhfctl.recipe.schema import Lora, Ppo


def ppo(reward: ModelSpec | None = None, *, shared: bool = True, **changes: Any) -> memory.MemoryEstimate:
    settings = {"lora": Lora(r=4), "per_device_train_batch_size": 8, "response_length": 24, "eval": {"every": 1}}
    section = Ppo(**(settings | changes))
    return ppo_memory.ppo_outlook(shape(), section, 12, reward or shape(), shared=shared, eval_prompts=4)


def test_roles_of_ppo() -> None:
    shared = ppo().peak.needs
    assert set(shared) == {BASE, "policy", "reward model", "critic"}
    assert shared["critic"][WEIGHTS] == pytest.approx(shared["policy"][WEIGHTS], rel=0.01)
    whole = ppo(lora=None, critic="model", shared=False).peak.needs
    assert set(whole) == {"policy", "reference", "reward model", "critic"}
    assert whole["critic"][OPTIMIZER] == pytest.approx(2 * whole["critic"][WEIGHTS], rel=0.01)
    head = ppo(critic="head").peak.needs
    assert head["critic"][OPTIMIZER] == 8 * WIDTH  # a vector: two numbers a weight
    reward = ppo(critic="reward")
    assert set(reward.peak.needs) == {BASE, "policy", "reward model", "critic"}
    kept = {ACTIVATIONS: 8 * 24 * WIDTH * 4, OPTIMIZER: 8 * WIDTH}  # the reward model's states, in float32
    assert next(moment for moment in reward.moments if moment.what == "the policy's step").needs["critic"] == kept
    own = ppo(lora=None, critic="reward", shared=False)
    assert own.peak.needs["critic"] == kept and "the critic's step" not in {moment.what for moment in own.moments}
    assert ppo(bf16=True).peak.needs["policy"][GRADIENTS] > 0
    cheaper = ppo(gradient_checkpointing=True).peak.total
    assert cheaper < 0.8 * ppo().peak.total < ppo(per_device_train_batch_size=16).peak.total


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "grpo"])
def test_without_a_critic_there_is_none_to_hold(algorithm: str) -> None:
    adapter, whole = ppo(algorithm=algorithm), ppo(algorithm=algorithm, lora=None, shared=False)
    assert set(adapter.peak.needs) == {BASE, "policy", "reward model"}
    assert set(whole.peak.needs) == {"policy", "reference", "reward model"}
    assert "the critic's step" not in {moment.what for moment in adapter.moments}
    assert adapter.peak.total < ppo().peak.total and ppo(algorithm="a2c").peak.needs["critic"]


def test_a_masking_policy_is_one_more_adapter_or_one_more_model() -> None:
    shared = ppo(algorithm="nlpo").peak.needs
    assert set(shared) == {BASE, "policy", "reward model", "critic", "masking policy"}
    assert shared["masking policy"] == {WEIGHTS: pytest.approx(shared["policy"][WEIGHTS], rel=0.01)}
    whole = ppo(algorithm="nlpo", lora=None, critic="model", shared=False).peak.needs
    assert whole["masking policy"] == {WEIGHTS: whole["policy"][WEIGHTS]}

    def cache(algorithm: str) -> int:
        moments = ppo(algorithm=algorithm).moments
        return next(moment for moment in moments if moment.what == "sampling").needs["policy"][CACHE]

    assert cache("nlpo") == pytest.approx(2 * cache("ppo"), rel=0.05)


@pytest.mark.parametrize("lora", [Lora(r=4), None])
def test_a_trust_region_needs_vectors_in_the_place_of_the_policys_optimizer(lora: Lora | None) -> None:
    parts: dict[str, Any] = {"lora": lora, "critic": "adapter" if lora else "model", "shared": lora is not None}
    usual, trust = (ppo(algorithm=name, **parts) for name in ("ppo", "trpo"))
    assert trust.peak.needs["policy"][OPTIMIZER] == 3 * usual.peak.needs["policy"][OPTIMIZER]
    assert trust.peak.needs["critic"][OPTIMIZER] == usual.peak.needs["critic"][OPTIMIZER]
    steps = [next(m for m in one.moments if m.what == "the policy's step").needs["policy"] for one in (usual, trust)]
    assert steps[1][ACTIVATIONS] > 0.5 * steps[0][ACTIVATIONS]


def test_recomputing_a_share_of_the_layers_lies_between_none_and_all() -> None:
    step = "the policy's step"
    none, part, every = (
        next(moment.total for moment in ppo(**more).moments if moment.what == step)
        for more in ({}, {"gradient_checkpointing": True, "checkpointed_share": 0.4}, {"gradient_checkpointing": True})
    )
    assert every < 0.98 * part < 0.9 * none


def test_a_step_holds_no_more_than_its_minibatch() -> None:
    """Two minibatches of 4 need what one batch of 4 needs, beside the sampling of 8."""
    halves = {moment.what: moment.total for moment in ppo(num_mini_batches=2).moments}
    small = {moment.what: moment.total for moment in ppo(per_device_train_batch_size=4).moments}
    whole = {moment.what: moment.total for moment in ppo().moments}
    assert halves["the policy's step"] == pytest.approx(small["the policy's step"], rel=0.01)
    assert halves["the policy's step"] < 0.9 * whole["the policy's step"]
    assert halves["sampling"] == whole["sampling"] > small["sampling"]


@pytest.mark.ci
def test_details_of_published_systems_need_memory() -> None:
    spec, section = shape(), Ppo(lora=Lora(r=4), per_device_train_batch_size=2, response_length=24, eval={"every": 1})

    def outlook(**changes: Any) -> dict[str, memory.Moment]:
        made = Ppo.model_validate(section.model_dump() | changes)
        found = ppo_memory.ppo_outlook(spec, made, 12, spec, shared=True, text=96)
        return {moment.what: moment for moment in found.moments}

    plain, step = outlook(), "the policy's step"
    assert not {"exact KL", "the step's next-token loss"} & plain.keys()
    ptx = {rows: outlook(ptx={"batch_size": rows})["the step's next-token loss"].total for rows in (2, 8)}
    assert ptx[8] > 1.5 * ptx[2] > 1.5 * plain[step].total  # the texts are longer than the episodes
    averaged = outlook(ema_decay=0.9)[step]
    weights = plain[step].needs["policy"][WEIGHTS]
    assert averaged.total - plain[step].total == pytest.approx(weights, rel=0.01)
    assert outlook(kl_estimator="exact")["exact KL"].total > plain["log-probabilities"].total


def test_states_below_the_first_adapter_are_kept_for_the_whole_batch() -> None:
    def learning(layers: list[int] | None, **changes: Any) -> int:
        low_rank = Lora(r=4, layers_to_transform=layers)
        outlook = ppo(lora=low_rank, critic="head", local_rollout_forward_batch_size=8, **changes)
        step = next(moment for moment in outlook.moments if moment.what == "the policy's step")
        return step.needs["policy"][ACTIVATIONS]

    one, two = (learning([LAYERS - 1], gradient_accumulation_steps=steps) for steps in (1, 2))
    kept = 8 * (12 + 24) * WIDTH * 4  # prompts and responses of a batch, in float32
    assert two - one == kept
    assert learning(None) == learning(None, gradient_accumulation_steps=2)


def test_a_cache_has_room_for_prompt_and_response() -> None:
    sampling = next(moment for moment in ppo().moments if moment.what == "sampling")
    a_row = 2 * LAYERS * WIDTH * 4 * (12 + 24)  # keys and values of all layers in float32
    assert sampling.needs["policy"][CACHE] == 8 * a_row
    assert sampling.needs["policy"][LOGITS] >= 2 * 8 * VOCABULARY * 4  # the logarithms and the probabilities


def test_slots_hold_the_cache_and_the_prompts_that_are_read() -> None:
    """Each slot has room for prompt and response; while prompts are read, their keys and values are held twice."""
    moments = {moment.what: moment for moment in ppo(sampler="slots", response_length=28).moments}
    held = moments["sampling"].needs["policy"]
    assert held[CACHE] == 8 * 2 * LAYERS * WIDTH * 4 * (12 + 28)
    assert held[ACTIVATIONS] >= 8 * 2 * LAYERS * WIDTH * 4 * 12


def test_a_held_out_reward_model_is_one_more_adapter_or_one_more_model() -> None:
    def needs(*, shared: bool, every: int = 1, **changes: Any) -> memory.Needs:
        settings = {"lora": Lora(r=4), "per_device_train_batch_size": 8, "response_length": 24} | changes
        section = Ppo(**settings, eval={"every": every})
        return ppo_memory.ppo_outlook(
            shape(), section, 12, shape(), shared=shared, heldout=True, eval_prompts=4
        ).peak.needs

    adapters = needs(shared=True)
    assert adapters["held-out reward model"] == adapters["reward model"]
    models = needs(shared=False, lora=None, critic="model")
    assert models["held-out reward model"] == {WEIGHTS: models["reward model"][WEIGHTS]}
    assert "held-out reward model" not in needs(shared=True, every=0)  # nothing evaluates, and it is not loaded


def test_each_member_of_an_ensemble_is_one_more_adapter() -> None:
    def needs(members: int) -> memory.Needs:
        section = Ppo(lora=Lora(r=4), per_device_train_batch_size=8, response_length=24)
        return ppo_memory.ppo_outlook(shape(), section, 12, shape(), shared=True, members=members).peak.needs

    one, five = needs(1), needs(5)
    assert five["reward model"][WEIGHTS] == 5 * one["reward model"][WEIGHTS]
    assert {role: kinds for role, kinds in five.items() if role != "reward model"} == {
        role: kinds for role, kinds in one.items() if role != "reward model"
    }
