"""Collect the experience of one update: sample, score, KL and rewards, values, advantages (steps 1 to 5).

Every random choice is a function of (seed, update, episode, position). No weight is changed here. Step 4 may compute
gradients of the critic; they are kept in the batch (`value_step`), not on the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhfctl.data.types import Row
from rlhfctl.errors import EngineError
from rlhfctl.generation.generator import Generator, TokenMask, sampling_for, stop_strings
from rlhfctl.generation.kl import state_kl
from rlhfctl.models import devices, kept_states
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.ensemble import disagreement_metric
from rlhfctl.rewards.episode import Episode, RewardFunction, extras_of, logged_means, make_episode, parts_of
from rlhfctl.rewards.unit_tests import outcome_metrics, outcomes_of
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.algorithms import Algorithm
from rlhfctl.training.rl.carried import Carried
from rlhfctl.training.rl.experience import Experience, forwards, spread
from rlhfctl.training.rl.moments import NO_SCORES, Moments, scaled_scores
from rlhfctl.training.rl.orders import Orders
from rlhfctl.training.rl.outcome_critic import OUTCOMES, OutcomeCritic
from rlhfctl.training.rl.roles import Roles
from rlhfctl.training.rl.values import critic_values

AGREEMENT = 1e-5  # nats per token: the largest difference of sampling and learning in float32
DISAGREEMENT = 1e-2  # nats per token: more than rounding can explain, so one of them is wrong


@dataclass(frozen=True)
class PromptData:
    """The prompts to answer: one list of ids per prompt, the row of each prompt, and the tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Row]
    prompts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Collector:
    """The inputs of collect() that are the same in every update."""

    section: Ppo
    algorithm: Algorithm
    roles: Roles
    reward: RewardFunction
    data: PromptData
    orders: Orders
    generator: Generator
    accelerator: Accelerator
    processes: Processes = ALONE
    outcome_critic: OutcomeCritic | None = None
    carried: Carried | None = None  # what the updates before handed on; None in a single update


def collect(
    collector: Collector, number: int, *, stream: int = 0, recomputes: bool = False, earlier_reward: float = 0.0
) -> Experience:
    """Collect the experience of update `number`. `stream` gives each attempt at the same update its own random numbers.

    If `recomputes`, the log-probabilities of the sampled tokens come from the training forward, not from sampling.
    `earlier_reward`: the mean reward of the responses of all earlier updates.
    """
    section, roles, accelerator = collector.section, collector.roles, collector.accelerator
    began = time.monotonic()
    with torch.no_grad(), accelerator.autocast():
        # 1. Sample: one response per prompt, with the log-probability of each sampled token.
        experience = sample_responses(collector, number, stream, recomputes)
        experience.earlier_reward = earlier_reward
        set_sampled_logprobs(experience, roles.policy, section, first=number == 1, recomputes=recomputes)
        devices.wait()
        sampled = time.monotonic()

        # 2. Score: one number per response, minus a penalty if the response did not end.
        reads = None if roles.critic is None else roles.critic.reads
        if reads is not None:
            experience.reward_states = kept_states.ResponseStates(
                experience.prompts, [response.ids for response in experience.responses]
            )
        with kept_states.shown_to(experience.reward_states, reads):
            before = NO_SCORES if collector.carried is None else collector.carried.scores
            set_scores(experience, section, collector.reward, collector.data, before)

        if collector.outcome_critic is not None:
            set_beliefs(experience, collector, collector.outcome_critic)

        # 3. KL and rewards: -kl_coef x KL per token, and the score at the end of the response.
        if section.kl_estimator == "exact":
            set_exact_kl(experience, roles, section)
        else:
            experience.ref_logprobs = token_logprobs(experience, roles.reference, section, "asking the reference")
        if collector.carried is not None and section.kl_target is not None:
            experience.kl_coef = collector.carried.kl_coef
        set_rewards(experience, section, collector.algorithm)
    devices.wait()
    scored = time.monotonic()

    # 4. Values: the value of the state before each token, and of the state after the end.
    if collector.algorithm.needs_critic:
        order = collector.orders.minibatches(number, 0, len(experience.responses))
        experience.values = critic_values(
            experience, section, roles, collector.algorithm.advantages, order, accelerator
        )
        devices.wait()
        scored = time.monotonic() if experience.value_step is None else scored  # otherwise this time counts as learning

    # 5. Advantages, and returns if there is a critic.
    with torch.no_grad():
        experience.advantages, returns = collector.algorithm.advantages(experience, section)
    if returns is not None:
        experience.returns = returns
    experience.rollout_s, experience.score_s = sampled - began, scored - sampled
    return experience


# ---------------------------------------------------------------- 1. sample


def sample_responses(collector: Collector, number: int, stream: int, recomputes: bool) -> Experience:
    """Sample the episodes of update `number`. Its prompts depend on the update alone, the draws on seed and episode."""
    section, data, critic = collector.section, collector.data, collector.roles.critic
    size = section.batch_size
    indices = collector.orders.prompts(number, size, section.num_generations, len(data.prompts))
    prompts = [list(data.prompts[index]) for index in indices]
    first = (number - 1) * size
    sampling = sampling_for(section, data.tokenizer, seed=collector.orders.seed, stream=stream)
    if (masking := collector.roles.masking) is not None:
        sampling = replace(sampling, mask=TokenMask(masking, section.nlpo.top_mask))
    responses = collector.generator(
        collector.roles.policy,
        prompts,
        data.tokenizer,
        sampling,
        episodes=range(first, first + len(prompts)),
        value_head=critic.values if critic is not None and critic.shares_policy and not recomputes else None,
    )
    device = collector.roles.policy.device
    experience = Experience.of(indices, prompts, responses, section.response_length, device, collector.processes)
    experience.number = number
    return experience


def set_sampled_logprobs(
    experience: Experience, policy: LanguageModel, section: Ppo, *, first: bool, recomputes: bool
) -> None:
    """Set the log-probabilities of the sampled tokens, `logprobs` (B, W).

    The numbers of sampling are used if the training forward reproduced them on the first update; otherwise the training
    forward computes them. If both are computed, `rollout_gap` is their largest difference.
    """
    exact = torch.promote_types(policy.head.weight.dtype, torch.float32)
    sampled = experience.table([response.logprobs for response in experience.responses], exact)
    if experience.masked:
        sampled = sampled - experience.table([response.kept for response in experience.responses], exact)
    experience.logprobs, experience.recomputed = sampled, recomputes
    if not first and not recomputes:
        return
    computed = token_logprobs(experience, policy, section, masked=experience.masked)
    gap = float((computed - sampled).abs().masked_fill(~experience.response_mask, 0.0).max())
    experience.rollout_gap = gap
    if not recomputes and not gap <= DISAGREEMENT:
        raise EngineError(
            f"rollout and update give log-probabilities that differ by {gap:.3g} nats",
            where="ppo.engine: rlhfctl",
            fix="this is a defect of the engine with this architecture: please report it, and use engine: trl",
        )
    experience.recomputed = recomputes or gap > AGREEMENT
    if experience.recomputed:
        experience.logprobs = computed
        if section.importance_cap is not None:
            mask = experience.response_mask
            experience.importance = ppo_math.importance_weights(computed, sampled, section.importance_cap, mask)


# ---------------------------------------------------------------- 2. and 3. scores and rewards


def set_scores(
    experience: Experience, section: Ppo, reward: RewardFunction, data: PromptData, before: Moments = NO_SCORES
) -> None:
    """Set `raw_scores`, the `parts` of a weighted sum, and `scores` after the penalty for a missing end.

    `before`: the moments of the scores of earlier updates, for `normalize_scores`.
    """
    ids = [response.ids for response in experience.responses]
    scores = reward(episodes_of(data, experience.prompt_indices, ids, section))
    experience.parts, experience.uncertain = parts_of(reward), disagreement_metric(reward) | outcome_metrics(reward)
    experience.outcomes = outcomes_of(reward)
    experience.logged, experience.extras = logged_means(reward), extras_of(reward)
    experience.raw_scores = torch.tensor(scores, dtype=experience.logprobs.dtype, device=experience.lengths.device)
    experience.moments = before.with_scores(experience.raw_scores)
    experience.scores = ppo_math.apply_missing_eos(
        scaled_scores(experience.raw_scores, experience.moments, section),
        experience.ended,
        penalty=section.missing_eos_penalty,
        score=section.missing_eos_score,
    )


def episodes_of(
    data: PromptData, indices: Sequence[int], responses: Sequence[Sequence[int]], section: Ppo
) -> list[Episode]:
    """Make the episodes of responses (ids) to the prompts of `indices`."""
    stops = stop_strings(section, data.tokenizer)
    return [
        make_episode(data.tokenizer, data.rows[index], data.prompts[index], response, stops)
        for index, response in zip(indices, responses, strict=True)
    ]


def set_beliefs(experience: Experience, collector: Collector, critic: OutcomeCritic) -> None:
    """Set `baselines`, the scores of the policy's greedy programs, and `beliefs`, the critic's in what happened."""
    section, data = collector.section, collector.data
    asked = list(dict.fromkeys(experience.prompt_indices))
    sampling = sampling_for(section, data.tokenizer, seed=collector.orders.seed, stream=0)
    greedy = collector.generator(
        collector.roles.policy,
        [list(data.prompts[index]) for index in asked],
        data.tokenizer,
        replace(sampling, temperature=None),
        what="sampling the greedy programs",
    )
    raw = torch.tensor(collector.reward(episodes_of(data, asked, [one.ids for one in greedy], section)))
    ended = torch.tensor([one.ended for one in greedy])
    scores = ppo_math.apply_missing_eos(
        raw, ended, penalty=section.missing_eos_penalty, score=section.missing_eos_score
    )
    by_prompt = dict(zip(asked, scores.tolist(), strict=True))
    baselines = [by_prompt[index] for index in experience.prompt_indices]
    experience.baselines = torch.tensor(baselines, dtype=experience.scores.dtype, device=experience.scores.device)
    experience.beliefs = torch.zeros_like(experience.logprobs)
    outcomes = torch.tensor([OUTCOMES.index(one) for one in experience.outcomes], device=experience.lengths.device)
    for part in forwards(experience, section, "asking the outcome critic"):
        believed = critic.beliefs(experience.sequences(part), outcomes[part])
        experience.beliefs[part] = spread(believed.to(experience.beliefs.dtype), experience.response_mask[part])
    experience.processes.sum_over([experience.beliefs])


def set_rewards(experience: Experience, section: Ppo, algorithm: Algorithm) -> None:
    """Set `kept`, `kl` and `rewards` (B, W) from both models' log-probabilities and the scores."""
    mask = experience.response_mask
    # With top-k or top-p, tokens are sampled from p / p(kept): estimate the KL of this truncated distribution. With a
    # masking policy the log-probabilities are already those of what was sampled from.
    kept = experience.table([response.kept for response in experience.responses], experience.logprobs.dtype)
    experience.kept = torch.zeros_like(kept) if experience.masked else kept
    if section.kl_estimator != "exact":  # the exact KL is set by now
        kl = ppo_math.kl_estimate(experience.logprobs - experience.kept, experience.ref_logprobs, section.kl_estimator)
        experience.kl = kl.masked_fill(~mask, 0.0)
    coefficient = experience.penalty(section) if algorithm.kl_in_reward else 0.0
    rewards = ppo_math.token_rewards(experience.kl, experience.scores, experience.lengths, coefficient, mask)
    if section.whiten_rewards:
        rewards = ppo_math.whiten(rewards, experience.value_mask, centre=False)
    experience.rewards = rewards


def set_exact_kl(experience: Experience, roles: Roles, section: Ppo) -> None:
    """Set `ref_logprobs`, and `kl` (B, W): at each token the KL of the whole distributions from which it is drawn.

    Each process computes its share of the rows.
    """
    mask = experience.response_mask
    reference, kl = torch.zeros_like(experience.logprobs), torch.zeros_like(experience.logprobs)
    for part in forwards(experience, section, "asking policy and reference"):
        sequences = experience.sequences(part)
        own, other = (role.states(sequences, sequences.before_tokens()) for role in (roles.policy, roles.reference))
        logprobs = roles.reference.token_logprobs(other, sequences.tokens(), section.temperature)[0]
        reference[part] = spread(logprobs.to(reference.dtype), mask[part])
        terms = state_kl(roles.policy, roles.reference, own, other, section.temperature)
        kl[part] = spread(terms.to(kl.dtype), mask[part])
    experience.processes.sum_over([reference, kl])
    experience.ref_logprobs, experience.kl = reference, kl


def token_logprobs(
    experience: Experience,
    model: LanguageModel,
    section: Ppo,
    what: str = "asking the policy",
    *,
    masked: bool = False,
) -> Tensor:
    """Compute the log-probabilities (B, W) of the sampled tokens under `model`, by full forwards.

    If `masked`, they are those among the tokens that the masking policy allowed. Each process computes its share of the
    rows.
    """
    result: Tensor | None = None
    for part in forwards(experience, section, what):
        allowed = experience.allowed(part) if masked else None
        logprobs = model.response_logprobs(experience.sequences(part), section.temperature, allowed)
        if result is None:
            result = torch.zeros(experience.response_mask.shape, dtype=logprobs.dtype, device=logprobs.device)
        result[part] = spread(logprobs, experience.response_mask[part])
    assert result is not None
    experience.processes.sum_over([result])
    return result
