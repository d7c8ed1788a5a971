"""Take one optimizer step on one minibatch: forward and backward of critic and policy, micro-batch by micro-batch.

The critic learns first. Each role finishes its backward pass before the other role's adapter becomes active. Every mean
is over all tokens of the minibatch, so the size of the micro-batches does not change the result. For the same reason
several processes can each take a part of the minibatch: the sum of their gradients is the gradient of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhfctl.models import sharding
from rlhfctl.models.packing import Sequences
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.carried import WeightAverage
from rlhfctl.training.rl.experience import Experience, pieces, spread
from rlhfctl.training.rl.ppo_math import PolicyTerms
from rlhfctl.training.rl.pretraining import Pretraining
from rlhfctl.training.rl.recovery import NonFiniteError
from rlhfctl.training.rl.roles import Critic, Roles
from rlhfctl.training.rl.trace import Trace


@dataclass(frozen=True)
class Given:
    """The numbers of one micro-batch that a policy loss reads beside the log-probabilities; all were fixed before.

    Tensors (b, w): log-probabilities under the policy that sampled and under the reference, advantages (times their
    importance weights), and the response mask. With top-k or top-p the reference's have the log of what was kept added,
    so that their difference from the policy's is that of what was sampled from. `tokens` (scalar) and `responses`:
    their numbers in the whole minibatch, by which a loss divides, so that the losses of micro-batches add up.
    """

    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    tokens: Tensor
    responses: int


# (log-probabilities (b, w) under the policy now, the other numbers, the section) -> the loss and its metrics.
PolicyLoss = Callable[[Tensor, Given, Ppo], PolicyTerms]


@dataclass(frozen=True)
class Learner:
    """The objects that learning updates or uses. `trained`: parameter name -> parameter, for all that is trained."""

    section: Ppo
    roles: Roles
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    pretraining: Pretraining | None = None  # the next-token loss on other text, where there is one
    average: WeightAverage | None = None  # of the policy's weights, where it is kept


# ---------------------------------------------------------------- forwards


def policy_forward(
    roles: Roles, sequences: Sequences, section: Ppo, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the policy: log-probabilities (N,) of the response tokens, entropies (N,), and values (M,).

    `allowed` (N, ceil(V / 8)), packed: the tokens that a masking policy allowed; log-probabilities are among these.
    The entropies are None if `entropy_coef` is 0. The values are None unless the critic shares the policy's trunk.
    """
    length, critic = section.response_length, roles.critic
    shares = critic is not None and critic.shares_policy
    hidden = roles.policy.states(sequences, sequences.states(length) if shares else sequences.before_tokens())
    logprobs, entropies = roles.policy.token_logprobs(
        hidden[sequences.before_tokens_in_states(length)] if shares else hidden,
        sequences.tokens(),
        section.temperature,
        with_entropy=section.entropy_coef > 0,
        allowed=allowed,
    )
    return logprobs, entropies, critic.values(hidden) if critic is not None and shares else None


def critic_forward(critic: Critic, sequences: Sequences, response_length: int) -> Tensor:
    """Compute the values (M,) of the response states with a critic that has its own trunk."""
    return critic.values(critic.states(sequences, sequences.states(response_length)))


def value_terms(
    experience: Experience, indices: Sequence[int], flat: Tensor, states: Tensor, section: Ppo
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Compute the critic's part of the loss, its values (b, w), and its share of the minibatch's mean metrics.

    `flat` (M,): the values of one micro-batch. `states`: the number of states in the whole minibatch.
    """
    chosen, width = list(indices), experience.width(indices)
    mask = experience.value_mask[chosen, :width]
    values = spread(flat.to(experience.values.dtype), mask)
    terms = ppo_math.value_loss(
        values,
        experience.values[chosen, :width],
        experience.returns[chosen, :width],
        mask,
        section.cliprange_value,
        states,
    )
    shares = {"value_loss": terms.loss.detach(), "value_clip_fraction": terms.clip_fraction}
    return section.vf_coef * terms.loss, values, shares


def given_for(experience: Experience, part: list[int], tokens: Tensor, responses: int) -> Given:
    """Make what a policy loss reads of the episodes `part`; `tokens` and `responses` count the whole minibatch."""
    width = experience.width(part)
    reference = experience.ref_logprobs[part, :width] + experience.kept[part, :width]
    return Given(
        old_logprobs=experience.logprobs[part, :width],
        ref_logprobs=reference,
        advantages=experience.weighted_advantages(part, width),
        mask=experience.response_mask[part, :width],
        tokens=tokens,
        responses=responses,
    )


# ---------------------------------------------------------------- one step


def gradient_step(
    learner: Learner,
    experience: Experience,
    indices: Sequence[int],
    epoch: int,
    policy_loss: PolicyLoss,
    trace: Trace | None = None,
) -> dict[str, float]:
    """Take one optimizer step on one minibatch, and return the minibatch's mean metrics.

    Raises NonFiniteError before a non-finite loss or gradient is applied.
    """
    section, critic, processes = learner.section, learner.roles.critic, experience.processes
    tokens = experience.response_mask[list(indices)].sum()
    states = experience.value_mask[list(indices)].sum()
    parts = pieces(processes.share(indices), section.per_device_train_batch_size)
    shares: list[dict[str, Tensor]] = []
    if critic is not None and not critic.shares_policy:
        shares += _critic_backward(learner, critic, experience, indices, epoch, trace)
    with processes.in_step():
        for part in parts:
            counts = (tokens, states, len(indices))
            shares.append(_learn_policy(learner, experience, part, counts, epoch, policy_loss, trace))
    if policy_waits(experience, section):
        _leave_policy(learner)
    elif learner.pretraining is not None:
        shares += learner.pretraining.learn(experience.texts, learner.roles, processes, learner.accelerator)
    return _apply_gradients(learner, processes, shares)


def critic_step(
    learner: Learner, experience: Experience, indices: Sequence[int], epoch: int, trace: Trace | None = None
) -> dict[str, float]:
    """Take the critic's optimizer step alone on one minibatch, and return its share of the mean metrics.

    Weights without a gradient are left as they are. A critic that reads the policy's states must not train its trunk.
    """
    critic = learner.roles.critic
    assert critic is not None
    shares = _critic_backward(learner, critic, experience, indices, epoch, trace)
    return _apply_gradients(learner, experience.processes, shares)


def _critic_backward(
    learner: Learner,
    critic: Critic,
    experience: Experience,
    indices: Sequence[int],
    epoch: int,
    trace: Trace | None,
) -> list[dict[str, Tensor]]:
    """Run the critic's forwards and backwards on this process's part of a minibatch, by forwards of its own."""
    if experience.value_step is not None:
        return _apply_value_step(learner, experience, epoch, trace)
    states = experience.value_mask[list(indices)].sum()
    parts = pieces(experience.processes.share(indices), learner.section.per_device_train_batch_size)
    with experience.processes.in_step():
        return [_learn_values(learner, critic, experience, part, states, epoch, trace) for part in parts]


def _apply_gradients(learner: Learner, processes: Processes, shares: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Add up gradients and metrics over the processes, and take the optimizer step; return the metrics."""
    optimizer, trained = learner.optimizer, list(learner.trained.values())
    processes.sum_gradients(trained)
    sums = _over_all(processes, _summed(shares))
    limit = learner.section.max_grad_norm
    norm = sharding.clip_gradients(trained, math.inf if limit is None else limit)
    losses = sum(value for name, value in sums.items() if name.endswith("_loss"))
    if not bool(torch.isfinite(norm + losses)):
        optimizer.zero_grad()
        raise NonFiniteError("a loss or a gradient is not finite")
    optimizer.step()
    optimizer.zero_grad()
    return {name: float(value) for name, value in sums.items()} | {"grad_norm": float(norm)}


def policy_waits(experience: Experience, section: Ppo) -> bool:
    """Tell whether the critic alone learns in this update (`policy_starts_after`)."""
    return 0 < experience.number <= section.policy_starts_after


def _leave_policy(learner: Learner) -> None:
    """Drop the policy's gradients, so that the optimizer leaves its weights and their moments as they are."""
    critic = learner.roles.critic_parameters()
    for name, parameter in learner.trained.items():
        if name not in critic:
            parameter.grad = None


def _apply_value_step(
    learner: Learner, experience: Experience, epoch: int, trace: Trace | None
) -> list[dict[str, Tensor]]:
    """Use the critic's gradients that were computed together with the values of the batch."""
    step = experience.value_step
    assert step is not None
    experience.value_step = None
    for name, gradient in step.gradients.items():
        learner.trained[name].grad = gradient
    if trace is not None:
        trace.add(epoch, range(len(experience.responses)), {"values": experience.values})
    return step.shares


def _learn_values(
    learner: Learner,
    critic: Critic,
    experience: Experience,
    part: list[int],
    states: Tensor,
    epoch: int,
    trace: Trace | None,
) -> dict[str, Tensor]:
    """Run forward and backward of a critic that has its own trunk or kept states, on one micro-batch."""
    with learner.accelerator.autocast():
        if experience.reward_states is not None:
            flat = critic.values(experience.kept_states(part, critic.states))
        else:
            flat = critic_forward(critic, experience.sequences(part), learner.section.response_length)
    loss, values, shares = value_terms(experience, part, flat, states, learner.section)
    learner.accelerator.backward(loss)
    if trace is not None:
        trace.add(epoch, part, {"values": values.detach()})
    return shares


def _learn_policy(
    learner: Learner,
    experience: Experience,
    part: list[int],
    counts: tuple[Tensor, Tensor, int],
    epoch: int,
    policy_loss: PolicyLoss,
    trace: Trace | None,
) -> dict[str, Tensor]:
    """Run forward and backward of the policy, and of a critic that shares its trunk, on one micro-batch.

    `counts`: tokens, states and responses of the whole minibatch. Returns the micro-batch's share of the minibatch's
    mean metrics.
    """
    section, (tokens, states, responses), critic = learner.section, counts, learner.roles.critic
    given = given_for(experience, part, tokens, responses)
    waits = policy_waits(experience, section)
    learns = not waits or (critic is not None and critic.shares_policy)
    with learner.accelerator.autocast(), torch.set_grad_enabled(learns):
        flat, entropies, flat_values = policy_forward(
            learner.roles, experience.sequences(part), section, experience.allowed(part)
        )
    logprobs = spread(flat, given.mask)
    terms = policy_loss(logprobs, given, section)
    loss = terms.loss
    shares = {"policy_loss": terms.loss.detach(), "approx_kl": terms.approx_kl, "ratio": terms.ratio_mean}
    if terms.clip_fraction is not None:
        shares["clip_fraction"] = terms.clip_fraction
    if entropies is not None:
        mean_entropy = entropies.sum() / tokens
        loss = loss - section.entropy_coef * mean_entropy
        shares["policy_entropy"] = mean_entropy.detach()
    traced = {"logprobs": logprobs.detach(), "ratio": terms.ratio, "clipped": terms.clipped}
    if flat_values is not None:
        value_loss, values, more = value_terms(experience, part, flat_values, states, section)
        loss, shares = value_loss if waits else loss + value_loss, shares | more
        traced["values"] = values.detach()
    if learns:
        learner.accelerator.backward(loss)
    if trace is not None:
        trace.add(epoch, part, traced)
    return shares


def _over_all(processes: Processes, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up each metric over the processes."""
    if processes.count == 1:
        return sums
    table = torch.stack([value.double() for value in sums.values()])
    processes.sum_over([table])
    return dict(zip(sums, table, strict=True))


def _summed(shares: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Add up each metric over the micro-batches that have it."""
    sums: dict[str, Tensor] = {}
    for share in shares:
        for name, value in share.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums
