"""Estimate the memory of ppo by running the engine's own functions on meta tensors.

The functions are in training/rl/minibatch.py, generation/local.py and models/scoring.py. Steps that need numbers
(drawing tokens, choosing positions) are replaced in meta_steps.py. TRL's PPO engine is not modelled. memory.py explains
how an estimate is made.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn

from rlhfctl.generation import kl
from rlhfctl.models import scoring
from rlhfctl.models.adapters import (
    CRITIC,
    HELDOUT,
    MASKING,
    POLICY,
    REWARD,
    add_adapter,
    add_lora,
    is_adapter_parameter,
)
from rlhfctl.models.ensembles import member_name
from rlhfctl.models.fused import fused
from rlhfctl.models.heads import AdapterScorer, new_head, with_own_head
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.lower_trunk import first_adapted
from rlhfctl.models.packing import PACKED, Sequences
from rlhfctl.planning import meta_steps
from rlhfctl.planning.frozen import FROZEN_ROLE, Frozen
from rlhfctl.planning.memory import (
    BASE,
    HELDOUT_ROLE,
    REWARD_ROLE,
    MemoryEstimate,
    ModelSpec,
    Moment,
    Needs,
    counted,
    language_model,
    scorer_model,
    weight_bytes,
    with_seen,
)
from rlhfctl.planning.meter import ACTIVATIONS, OPTIMIZER, WEIGHTS, AllocationMeter, on_meta_device
from rlhfctl.recipe.schema import Lora, Ppo
from rlhfctl.training.rl.fisher import fisher_product
from rlhfctl.training.rl.minibatch import critic_forward, policy_forward
from rlhfctl.training.rl.roles import Critic, Roles

MASKING_ROLE = "masking policy"
_ROLE_OF_ADAPTER = {
    POLICY: "policy", CRITIC: "critic", REWARD: REWARD_ROLE, HELDOUT: HELDOUT_ROLE, MASKING: MASKING_ROLE
}  # fmt: skip
_TRPO_VECTORS = 6  # old weights, gradient, and conjugate gradient's solution, residual, direction and product


def ppo_outlook(
    spec: ModelSpec,
    section: Ppo,
    prompt: int,
    reward: ModelSpec | None,
    *,
    shared: bool,
    heldout: bool = False,
    members: int = 1,
    eval_prompts: int = 0,
    processes: int = 1,
    text: int = 0,
    frozen: Frozen | None = None,
) -> MemoryEstimate:
    """Estimate the memory of the rlhfctl engine on prompts of `prompt` tokens.

    `reward`: the reward model (None: a function). `shared`: whether the reward model is an adapter on the same base*.
    `heldout`: whether evaluations score with a second reward model, which is made as the first is. `members`: reward
    models of an ensemble, which are adapters on one model; they score one after the other. `processes`: those that
    divide the episodes; the estimate is that of one of them. `text`: tokens of the longest row of `ppo.ptx`.
    `frozen`: a model that classifies with the responses.
    """
    heldout = heldout and section.eval.every > 0 and eval_prompts > 0
    with on_meta_device(autocast=section.bf16):
        roles, scorer, own = _skeleton(spec, section, reward, shared=shared, heldout=heldout, members=members)
        trained = roles.prepare()
        critic = None if roles.critic is None else roles.critic.scorer
        for model in (roles.policy.model, roles.reference.model, own, critic):
            meta_steps.lay_end_to_end(model)
        held = _weights_by_role(roles, own, spec, reward, trust_region=section.algorithm == "trpo")
        if section.ema_decay is not None:
            _add_average(held, roles)
        if heldout and own is not None:
            held[HELDOUT_ROLE] = held[REWARD_ROLE]  # a second model of the same size
        if frozen is not None:
            held[FROZEN_ROLE] = {WEIGHTS: frozen.weights()}
        modules = [*roles.modules(), *([] if own is None else [own])]
        with contextlib.ExitStack() as inside:
            for module in modules:
                inside.enter_context(fused(module, try_numbers=False))
            meter = AllocationMeter(roles.policy.vocabulary)
            meter.ignore_weights(*roles.modules(), *([scorer] if isinstance(scorer, nn.Module) else []))
            moments = _update(meter, section, roles, scorer, held, prompt, processes, text)
            if eval_prompts and section.eval.every:
                aside = {} if section.ema_decay is None else {WEIGHTS: sum(one.nbytes for one in _averaged(roles))}
                with_average = with_seen(held, "policy", aside)  # the policy's own weights while their average answers
                moments.append(_evaluation(meter, section, roles, with_average, prompt, eval_prompts))
        if frozen is not None:
            moments.append(frozen.classifying(held, section.local_rollout_forward_batch_size))
        copies = sum(parameter.nbytes for parameter in trained.values())
        moments.append(Moment("writing a checkpoint", with_seen(held, "policy", {WEIGHTS: copies})))
        counts = counted(*modules)
    return MemoryEstimate(tuple(moments), *counts)


def _skeleton(
    spec: ModelSpec, section: Ppo, reward: ModelSpec | None, *, shared: bool, heldout: bool = False, members: int = 1
) -> tuple[Roles, Any, Any]:
    """Make (roles, reward model, reward model if it is a separate model); None for what does not exist."""
    lora = None if section.lora is None else section.lora.model_copy(update={"lora_dropout": 0.0})
    model = language_model(spec)
    reference = None if lora is not None else LanguageModel(language_model(spec), 0)
    own = None if shared or reward is None else scorer_model(reward)
    if lora is not None:
        model = add_lora(model, lora, TaskType.CAUSAL_LM, seed=0)
    policy = LanguageModel(model, 0, POLICY if lora is not None else None)
    scorer = own
    if shared and lora is not None:
        add_adapter(model, REWARD, lora, seed=0)
        scorer = AdapterScorer(policy.with_adapter(REWARD), new_head(model))
        for number in range(1, members):
            add_adapter(model, member_name(REWARD, number), lora, seed=0)
        if heldout:
            add_adapter(model, HELDOUT, lora, seed=0)
    critic: Critic | None
    if section.critic_kind == "reward" and scorer is not None:
        critic = Critic(with_own_head(scorer), reads=scorer)
    else:
        critic = _critic(policy, section, lora, spec if reward is None or own is None else reward)
    masking = None
    if section.algorithm == "nlpo":
        masking = LanguageModel(language_model(spec), 0) if lora is None else policy.with_adapter(MASKING)
    if masking is not None and lora is not None:
        add_adapter(model, MASKING, lora, seed=0)
    return Roles(policy, reference or policy.with_adapter(None), critic, masking), scorer, own


def _critic(policy: LanguageModel, section: Ppo, lora: Lora | None, scorer: ModelSpec) -> Critic | None:
    """Make the critic, if the algorithm has one; `scorer` describes a critic that is a separate model."""
    if section.critic_kind is None:
        return None
    if section.critic_kind == "model":
        return Critic(scorer_model(scorer))
    if section.critic_kind == "head":
        head = AdapterScorer(policy, new_head(policy.model))
        return Critic(head, shares_policy=True, trains_trunk=section.critic_trains_trunk)
    assert lora is not None
    add_adapter(policy.model, CRITIC, lora, seed=0)
    return Critic(AdapterScorer(policy.with_adapter(CRITIC), new_head(policy.model)))


def _weights_by_role(roles: Roles, own: Any, spec: ModelSpec, reward: ModelSpec | None, *, trust_region: bool) -> Needs:
    """Count weights and optimizer state by role; a shared base* is listed as a separate role.

    In a `trust_region` the policy has no optimizer, but the vectors of conjugate gradient.
    """
    needs: dict[str, dict[str, int]] = {}
    base, _ = weight_bytes(roles.policy.model, spec.quantization)
    low_rank: Counter[str] = Counter()
    for name, parameter in roles.policy.model.named_parameters():
        for adapter, role in _ROLE_OF_ADAPTER.items():
            if is_adapter_parameter(name, adapter):
                low_rank[role] += parameter.nbytes
        if is_adapter_parameter(name) and f".{REWARD}-" in name:  # a further member of an ensemble
            low_rank[REWARD_ROLE] += parameter.nbytes
    if low_rank:
        needs = {BASE: {WEIGHTS: base}, **{role: {WEIGHTS: size} for role, size in low_rank.items()}}
    else:
        needs = {"policy": {WEIGHTS: base}, "reference": {WEIGHTS: weight_bytes(roles.reference.model)[0]}}
    if roles.masking is not None and roles.masking.model is not roles.policy.model:
        needs[MASKING_ROLE] = {WEIGHTS: weight_bytes(roles.masking.model)[0]}
    if own is not None and reward is not None:
        needs[REWARD_ROLE] = {WEIGHTS: weight_bytes(own, reward.quantization)[0]}
    if roles.critic is not None and not roles.critic.is_adapter and not roles.critic.trains_only_head:
        needs["critic"] = {WEIGHTS: weight_bytes(roles.critic.scorer)[0]}
    of_critic = roles.critic_parameters()
    for name, parameter in roles.trainable().items():
        kinds = needs.setdefault("critic" if name in of_critic else "policy", {})
        copies = _TRPO_VECTORS if trust_region and name not in of_critic else 2
        kinds[OPTIMIZER] = kinds.get(OPTIMIZER, 0) + copies * parameter.nbytes
    return needs


def _texts_of_a_step(section: Ppo, text: int, processes: int) -> Sequences | None:
    """Make the rows of the next-token loss that are in memory at once, each of `text` tokens; None without the loss."""
    if section.ptx is None:
        return None
    rows = math.ceil(max(1, round(section.ptx.ratio * section.mini_batch_size)) / processes)
    return meta_steps.longest(
        min(rows, section.ptx.batch_size or section.per_device_train_batch_size), 1, max(text, 2) - 1
    )


def _averaged(roles: Roles) -> list[nn.Parameter]:
    """List the weights that `ema_decay` averages: the policy's trained ones."""
    of_critic = roles.critic_parameters()
    return [one for name, one in roles.trainable().items() if name not in of_critic]


def _add_average(held: Needs, roles: Roles) -> None:
    """Count the average of the policy's weights, which is in float32 or wider."""
    wide = sum(one.numel() * torch.promote_types(one.dtype, torch.float32).itemsize for one in _averaged(roles))
    held["policy"][OPTIMIZER] = held["policy"].get(OPTIMIZER, 0) + wide


def _update(
    meter: AllocationMeter, section: Ppo, roles: Roles, scorer: Any, held: Needs, prompt: int, processes: int, text: int
) -> list[Moment]:
    """Measure the moments of one update: sampling, log-probabilities, scoring, steps of critic and policy."""
    policy, critic, length = roles.policy, roles.critic, section.response_length
    moments: list[Moment] = []
    at_once = min(section.local_rollout_forward_batch_size, math.ceil(section.batch_size / processes))
    in_a_step = min(section.per_device_train_batch_size, math.ceil(section.mini_batch_size / processes))
    asked, learned = meta_steps.longest(at_once, prompt, length), meta_steps.longest(in_a_step, prompt, length)

    texts = _texts_of_a_step(section, text, processes)

    def moment(what: str, role: str) -> None:
        moments.append(Moment(what, with_seen(held, role, meter.peak)))
        meter.restart()

    with meter:
        with torch.no_grad():
            slots = section.sampler == "slots"
            meta_steps.sample(meter, policy, at_once, prompt, length, masking=roles.masking, slots=slots)
            moment("sampling", "policy")
            if below := _states_below(policy, section, prompt):
                held = with_seen(held, "policy", {ACTIVATIONS: below})
            policy.response_logprobs(asked, section.temperature)
            moment("log-probabilities", "policy")
            if section.kl_estimator == "exact":
                meta_steps.exact_kl(policy, roles.reference, at_once, prompt, length)
                moment("exact KL", "policy")
            if scorer is not None:
                scoring.outputs_at_end(scorer, asked)
                if critic is not None and critic.reads is not None:
                    held = with_seen(held, "critic", {ACTIVATIONS: _kept_states(policy, section)})
                moment("scoring", REWARD_ROLE)
        with roles.recomputing(section.recomputed_share):
            if critic is not None and not critic.trains_only_head:
                value = critic_forward(critic, learned, length).sum()
                value.backward()
                del value
                moment("the critic's step", "critic")
            if section.algorithm == "trpo":
                weights = {name.removeprefix("policy."): one for name, one in roles.policy_parameters().items()}
                vector = {name: torch.zeros_like(one) for name, one in weights.items()}
                meter.restart()
                fisher_product(policy, learned, weights, vector, section.temperature)
            else:
                given = policy_forward(roles, learned, section)
                loss = sum(part.sum() for part in given if part is not None)
                assert isinstance(loss, Tensor)
                loss.backward()
                del loss, given
            moment("the policy's step", "policy")
            if texts is not None:
                policy.response_logprobs(texts, 1.0).sum().backward()
                moment("the step's next-token loss", "policy")
    for module in roles.modules():
        module.zero_grad(set_to_none=True)
    return moments


def _states_below(policy: LanguageModel, section: Ppo, prompt: int) -> int:
    """Count the bytes of the states below the first adapted layer that are kept during an update."""
    if policy.trunk.config._attn_implementation != PACKED or not first_adapted(policy.trunk, POLICY):
        return 0
    states = section.batch_size * (prompt + section.response_length)
    return states * policy.head.weight.shape[1] * policy.head.weight.element_size()


def _kept_states(policy: LanguageModel, section: Ppo) -> int:
    """Count the bytes of the reward model's states that a critic reads in every PPO epoch of an update."""
    states = section.batch_size * section.response_length
    return states * policy.head.weight.shape[1] * policy.head.weight.element_size()


def _evaluation(
    meter: AllocationMeter, section: Ppo, roles: Roles, held: Needs, prompt: int, eval_prompts: int
) -> Moment:
    """Measure the exact KL on the eval prompts."""
    with torch.no_grad(), meter:
        meter.restart()
        meta_steps.exact_kl(
            roles.policy, roles.reference, min(kl.ROWS_AT_ONCE, eval_prompts), prompt, section.response_length
        )
    return Moment("evaluation", with_seen(held, "policy", meter.peak))
