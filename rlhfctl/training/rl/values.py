"""Compute the critic's values of a batch, each by one forward: that of sampling, of learning, or one made for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhfctl.events import Work
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.experience import Experience, ValueStep, forwards, pieces, spread
from rlhfctl.training.rl.minibatch import critic_forward, value_terms
from rlhfctl.training.rl.roles import Critic, Roles


class Advantages(Protocol):
    """Advantages (B, W) and, with a critic, the returns (B, W) that it learns, from rewards and values.

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
    """(B, W) values of the states before each token and after the end.

    If the whole batch is the first minibatch, its forward in the first PPO epoch gives these values too. That forward
    is made here, micro-batch by micro-batch in `first_order`, and `experience.value_step` keeps what it leaves for the
    step: the gradients of the critic.
    """
    critic = roles.critic
    assert critic is not None
    if critic.shares_policy and not experience.recomputed and experience.responses[0].values:
        return experience.table([response.values for response in experience.responses], experience.logprobs.dtype)
    if section.num_mini_batches == 1 and not critic.shares_policy:
        with roles.recomputing(section.gradient_checkpointing):
            experience.value_step = _first_step(experience, section, roles, advantages, first_order, accelerator)
        return experience.values
    with torch.no_grad(), accelerator.autocast():
        return _plain_values(experience, section, roles, critic)


def _plain_values(experience: Experience, section: Ppo, roles: Roles, critic: Critic) -> Tensor:
    """By forwards of their own."""
    result = torch.zeros_like(experience.logprobs)
    for part in forwards(experience, section, "asking the critic"):
        sequences = experience.sequences(part)
        trunk = roles.policy if critic.shares_policy else critic
        values = critic.values(trunk.states(sequences)[sequences.states(section.response_length)])
        result[part] = spread(values.to(result.dtype), experience.value_mask[part])
    return result


def _first_step(
    experience: Experience,
    section: Ppo,
    roles: Roles,
    advantages: Advantages,
    order: Sequence[int],
    accelerator: Accelerator,
) -> ValueStep:
    """Set `experience.values` by the forwards of the first value step; keep that step's gradients."""
    critic, trained = roles.critic, roles.critic_parameters()
    assert critic is not None
    experience.values = torch.zeros_like(experience.rewards)
    states = experience.value_mask.sum()
    gradients: dict[str, Tensor] = {}
    shares = []
    parts = pieces(order, section.per_device_train_batch_size)
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
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, found, strict=True):
            if gradient is not None:  # the optimizer reads it in the order in which the parameter lies
                gradients[name] = gradients[name] + gradient if name in gradients else gradient.contiguous()
    return ValueStep(gradients, shares)
