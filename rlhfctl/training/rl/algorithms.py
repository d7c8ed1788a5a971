"""List the reinforcement-learning algorithms in one table: advantages, policy loss and optimizer step of each.

Each entry is one algorithm. The advantages and the policy loss are pure functions: advantages from rewards and values,
a policy loss from log-probabilities. The step updates the weights on one minibatch. docs/extending.md shows how to add
an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import coderl, ppo_math
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.minibatch import PolicyLoss, gradient_step
from rlhfctl.training.rl.ppo_math import PolicyTerms
from rlhfctl.training.rl.values import Advantages


@dataclass(frozen=True)
class Algorithm:
    """The parts in which algorithms differ; all other code is shared.

    `needs_critic`: if true, `experience.values` exist for `advantages`, and a critic is trained on the returns.
    `step`: takes one optimizer step on a minibatch and returns the minibatch's mean metrics; PPO uses a gradient step.
    """

    advantages: Advantages
    policy_loss: PolicyLoss
    needs_critic: bool
    step: Callable[..., dict[str, float]] = gradient_step


def generalized_advantages(experience: Experience, section: Ppo) -> tuple[Tensor, Tensor]:
    """Compute generalized advantages (B, W), whitened over the batch if the section asks for it, and returns (B, W)."""
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
    """Compute the negative of PPO's clipped objective: summed over `mask`, divided by the minibatch's `tokens`."""
    return ppo_math.policy_loss(logprobs, old_logprobs, advantages, mask, section.cliprange, tokens)


ALGORITHMS = {
    "ppo": Algorithm(advantages=generalized_advantages, policy_loss=clipped_surrogate, needs_critic=True),
    "coderl": Algorithm(advantages=coderl.outcome_weighted, policy_loss=clipped_surrogate, needs_critic=False),
}
