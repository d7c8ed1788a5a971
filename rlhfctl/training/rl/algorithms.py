"""The table of reinforcement-learning algorithms: what each computes from a batch, and how it steps.

One entry is one algorithm. The functions are pure: advantages from rewards and values, a policy loss from
log-probabilities, and the step that learning takes on each minibatch. docs/extending.md shows how to add an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.minibatch import PolicyLoss, gradient_step
from rlhfctl.training.rl.ppo_math import PolicyTerms
from rlhfctl.training.rl.values import Advantages


@dataclass(frozen=True)
class Algorithm:
    """What makes one algorithm another: everything else is the same for all.

    `needs_critic`: whether `experience.values` are there for `advantages`, and a critic learns its returns.
    `step`: takes one optimizer step on a minibatch and returns its means; PPO's is the gradient step.
    """

    advantages: Advantages
    policy_loss: PolicyLoss
    needs_critic: bool
    step: Callable[..., dict[str, float]] = gradient_step


def generalized_advantages(experience: Experience, section: Ppo) -> tuple[Tensor, Tensor]:
    """Generalized advantages (B, W), whitened over the batch if the section says so, and returns (B, W)."""
    mask = experience.response_mask
    advantages, returns = ppo_math.advantages_and_returns(
        experience.rewards, experience.values, experience.value_mask, section.gamma, section.lam
    )
    if section.whiten_advantages:
        return ppo_math.whiten(advantages, mask), returns
    return advantages.masked_fill(~mask, 0.0), returns


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, tokens: Tensor, section: Ppo
) -> PolicyTerms:
    """PPO's clipped objective with its sign turned, summed over `mask`, divided by the minibatch's `tokens`."""
    return ppo_math.policy_loss(logprobs, old_logprobs, advantages, mask, section.cliprange, tokens)


ALGORITHMS = {
    "ppo": Algorithm(advantages=generalized_advantages, policy_loss=clipped_surrogate, needs_critic=True),
}
