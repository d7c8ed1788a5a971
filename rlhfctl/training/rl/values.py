"""Compute the critic's values for a batch with as few forwards as possible.

The values come from the forward of sampling if the critic shares the policy's trunk, from the states that the reward
model computed while scoring if the critic reads these, from the forward of the first optimizer step if the batch is one
minibatch, and otherwise from a forward of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhfctl.events import Work
from rlhfctl.models import sharding
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.experience import Experience, ValueStep, forwards, pieces, spread
from rlhfctl.training.rl.minibatch import critic_forward, value_terms
from rlhfctl.training.rl.roles import Critic, Roles


class Advantages(Protocol):
    """Compute advantages (B, W) and, with a critic, the returns (B, W) that it learns, from rewards and values.

    The returns of a response must depend on that response alone, so that the critic can learn from a part of the batch.
    """

    def __call__(self, experience: Experience, section: Ppo, /) -> tuple[Tensor, Tensor | None]: ...


def critic_values(
    experience: Experience,
    section: Ppo,
    roles: Roles,
    advantages: Advantages,
    first_order: Sequence[int],
    accelerator: Accelerator,
) -> Tensor:
    """Compute the values (B, W) of the states before each token and after the end.

    If the batch is a single minibatch, the critic's forward in the first PPO epoch gives these values too. That forward
    runs here, micro-batch by micro-batch in `first_order`, and `experience.value_step` keeps the critic's gradients for
    the optimizer step.
    """
    critic = roles.critic
    assert critic is not None
    if critic.shares_policy and not experience.recomputed and experience.responses[0].values:
        return experience.table([response.values for response in experience.responses], experience.logprobs.dtype)
    if critic.reads is not None:
        with torch.no_grad(), accelerator.autocast():
            return _values_of_kept_states(experience, section, critic)
    divided = any(map(sharding.is_divided, roles.critic_parameters().values()))  # their gradients cannot be set aside
    if section.num_mini_batches == 1 and not critic.shares_policy and not divided:
        with roles.recomputing(section.recomputed_share):
            experience.value_step = _first_step(experience, section, roles, advantages, first_order, accelerator)
        return experience.values
    with torch.no_grad(), accelerator.autocast():
        return _plain_values(experience, section, roles, critic)


def _values_of_kept_states(experience: Experience, section: Ppo, critic: Critic) -> Tensor:
    """Compute the values from the reward model's states, and the states first where scoring did not give them."""
    result = torch.zeros_like(experience.logprobs)
    for part in forwards(experience, section, "asking the critic"):
        values = critic.values(experience.kept_states(part, critic.states))
        result[part] = spread(values.to(result.dtype), experience.value_mask[part])
    experience.processes.sum_over([result])
    return result


def _plain_values(experience: Experience, section: Ppo, roles: Roles, critic: Critic) -> Tensor:
    """Compute the values by forwards that are used for nothing else."""
    result = torch.zeros_like(experience.logprobs)
    for part in forwards(experience, section, "asking the critic"):
        sequences = experience.sequences(part)
        trunk = roles.policy if critic.shares_policy else critic
        values = critic.values(trunk.states(sequences, sequences.states(section.response_length)))
        result[part] = spread(values.to(result.dtype), experience.value_mask[part])
    experience.processes.sum_over([result])
    return result


def _first_step(
    experience: Experience,
    section: Ppo,
    roles: Roles,
    advantages: Advantages,
    order: Sequence[int],
    accelerator: Accelerator,
) -> ValueStep:
    """Set `experience.values` from the forwards of the first value step; return that step's gradients.

    Each process computes its share of the rows, and keeps the gradients of these.
    """
    critic, trained = roles.critic, roles.critic_parameters()
    assert critic is not None
    experience.values = torch.zeros_like(experience.rewards)
    states = experience.value_mask.sum()
    gradients: dict[str, Tensor] = {}
    shares = []
    parts = pieces(experience.processes.share(order), section.per_device_train_batch_size)
    with experience.processes.in_step():
        for part in Work("asking the critic", len(parts), "batch").through(parts):
            with accelerator.autocast():
                flat = critic_forward(critic, experience.sequences(part), section.response_length)
            mask = experience.value_mask[part]
            experience.values[part] = spread(flat.detach().to(experience.values.dtype), mask)
            returns = advantages(experience, section)[1]
            assert returns is not None
            experience.returns = returns
            loss, _, share = value_terms(experience, part, flat, states, section)
            shares.append(share)
            computed = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, computed, strict=True):
                if gradient is not None:  # contiguous: the optimizer reads it in the memory order of the parameter
                    gradients[name] = gradients[name] + gradient if name in gradients else gradient.contiguous()
    experience.processes.sum_over([experience.values])
    return ValueStep(gradients, shares)
