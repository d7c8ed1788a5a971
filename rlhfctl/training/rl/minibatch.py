"""Take one optimizer step on a minibatch: forwards and backwards of critic and policy, micro-batch by micro-batch.

The critic learns first: each role's backward is done before the other's adapter becomes active. Every mean is over the
minibatch's tokens, so how it is cut into micro-batches changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhfctl.models.packing import Sequences
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.experience import Experience, pieces, spread
from rlhfctl.training.rl.ppo_math import PolicyTerms
from rlhfctl.training.rl.recovery import NonFiniteError
from rlhfctl.training.rl.roles import Critic, Roles
from rlhfctl.training.rl.trace import Trace

# (logprobs, old logprobs, advantages, response mask: all (B, W); the minibatch's tokens; the section) -> the loss.
PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Ppo], PolicyTerms]


@dataclass(frozen=True)
class Learner:
    """What learning changes, and what it needs for that. `trained`: each trained parameter by name."""

    section: Ppo
    roles: Roles
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator


# ---------------------------------------------------------------- forwards


def policy_forward(roles: Roles, sequences: Sequences, section: Ppo) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probabilities (N,) of the response tokens; their entropies (N,) if `entropy_coef` asks for them; the values
    (M,) of a critic that shares the policy's trunk.
    """
    hidden = roles.policy.states(sequences)
    logprobs, entropies = roles.policy.token_logprobs(
        hidden[sequences.before_tokens()],
        sequences.tokens(),
        section.temperature,
        with_entropy=section.entropy_coef > 0,
    )
    if roles.critic is None or not roles.critic.shares_policy:
        return logprobs, entropies, None
    return logprobs, entropies, roles.critic.values(hidden[sequences.states(section.response_length)])


def critic_forward(critic: Critic, sequences: Sequences, response_length: int) -> Tensor:
    """Values (M,) of the states of the responses, by a critic with a trunk of its own."""
    return critic.values(critic.states(sequences)[sequences.states(response_length)])


def value_terms(
    experience: Experience, indices: Sequence[int], flat: Tensor, states: Tensor, section: Ppo
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The critic's part of the loss, its values (b, w), and its share of the minibatch's means.

    `flat` (M,): the values of a micro-batch. `states`: how many states the whole minibatch has.
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


# ---------------------------------------------------------------- a step


def gradient_step(
    learner: Learner,
    experience: Experience,
    indices: Sequence[int],
    epoch: int,
    policy_loss: PolicyLoss,
    trace: Trace | None = None,
) -> dict[str, float]:
    """One step of the optimizer on a minibatch. Returns the minibatch's means.

    NonFiniteError before anything that is not finite is applied.
    """
    section, critic, optimizer = learner.section, learner.roles.critic, learner.optimizer
    tokens = experience.response_mask[list(indices)].sum()
    states = experience.value_mask[list(indices)].sum()
    parts = pieces(indices, section.per_device_train_batch_size)
    shares: list[dict[str, Tensor]] = []
    if experience.value_step is not None:
        shares += _apply_value_step(learner, experience, epoch, trace)
    elif critic is not None and not critic.shares_policy:
        for part in parts:
            shares.append(_learn_values(learner, critic, experience, part, states, epoch, trace))
    for part in parts:
        shares.append(_learn_policy(learner, experience, part, (tokens, states), epoch, policy_loss, trace))
    sums = _summed(shares)
    limit = section.max_grad_norm
    norm = torch.nn.utils.clip_grad_norm_(list(learner.trained.values()), math.inf if limit is None else limit)
    losses = sum(value for name, value in sums.items() if name.endswith("_loss"))
    if not bool(torch.isfinite(norm + losses)):
        optimizer.zero_grad()
        raise NonFiniteError("a loss or a gradient is not finite")
    optimizer.step()
    optimizer.zero_grad()
    return {name: float(value) for name, value in sums.items()} | {"grad_norm": float(norm)}


def _apply_value_step(
    learner: Learner, experience: Experience, epoch: int, trace: Trace | None
) -> list[dict[str, Tensor]]:
    """Hand over the gradients that the critic's forward left when it gave the values of the batch."""
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
    """Forward and backward of a critic with a trunk of its own, on a micro-batch."""
    with learner.accelerator.autocast():
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
    counts: tuple[Tensor, Tensor],
    epoch: int,
    policy_loss: PolicyLoss,
    trace: Trace | None,
) -> dict[str, Tensor]:
    """Forward and backward of the policy, and of a critic that shares its trunk, on a micro-batch.

    `counts`: tokens and states of the whole minibatch. Returns the micro-batch's share of the minibatch's means.
    """
    section, (tokens, states), width = learner.section, counts, experience.width(part)
    mask = experience.response_mask[part, :width]
    with learner.accelerator.autocast():
        flat, entropies, flat_values = policy_forward(learner.roles, experience.sequences(part), section)
    logprobs = spread(flat, mask)
    terms = policy_loss(
        logprobs, experience.logprobs[part, :width], experience.advantages[part, :width], mask, tokens, section
    )
    loss = terms.loss
    shares = {
        "policy_loss": terms.loss.detach(),
        "approx_kl": terms.approx_kl,
        "clip_fraction": terms.clip_fraction,
        "ratio": terms.ratio_mean,
    }
    if entropies is not None:
        mean_entropy = entropies.sum() / tokens
        loss = loss - section.entropy_coef * mean_entropy
        shares["policy_entropy"] = mean_entropy.detach()
    traced = {"logprobs": logprobs.detach(), "ratio": terms.ratio, "clipped": terms.clipped}
    if flat_values is not None:
        value_loss, values, more = value_terms(experience, part, flat_values, states, section)
        loss, shares = loss + value_loss, shares | more
        traced["values"] = values.detach()
    learner.accelerator.backward(loss)
    if trace is not None:
        trace.add(epoch, part, traced)
    return shares


def _summed(shares: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of each number over all micro-batches that have it."""
    sums: dict[str, Tensor] = {}
    for share in shares:
        for name, value in share.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums
