"""List the reinforcement-learning algorithms in one table: advantages, policy loss and optimizer step of each.

Each entry is one algorithm. The advantages and the policy loss are pure functions: advantages from rewards and values,
a policy loss from log-probabilities. The step updates the weights on one minibatch. Which keys of the recipe each one
uses is said in recipe/sections/algorithm.py. docs/extending.md shows how to add an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import coderl, ppo_math
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.minibatch import Given, PolicyLoss, gradient_step
from rlhfctl.training.rl.policy_gradient import group_relative, over_responses, over_tokens
from rlhfctl.training.rl.ppo_math import PolicyTerms
from rlhfctl.training.rl.response_advantages import response_advantages
from rlhfctl.training.rl.trpo import importance_weighted, trust_region_step
from rlhfctl.training.rl.values import Advantages


@dataclass(frozen=True)
class Algorithm:
    """The parts in which algorithms differ; all other code is shared.

    `needs_critic`: if true, `experience.values` exist for `advantages`, and a critic is trained on the returns.
    `step`: takes one optimizer step on a minibatch and returns the minibatch's mean metrics; PPO uses a gradient step.
    `kl_in_reward`: whether the rewards hold the KL penalty; if not, the policy loss takes care of it.
    `goes_on_from_policy`: whether a finished training can go on from its policy alone, without other state.
    """

    advantages: Advantages
    policy_loss: PolicyLoss
    needs_critic: bool
    step: Callable[..., dict[str, float]] = gradient_step
    kl_in_reward: bool = True
    goes_on_from_policy: bool = False


def generalized_advantages(experience: Experience, section: Ppo) -> tuple[Tensor, Tensor]:
    """Compute generalized advantages (B, W), whitened over the batch if the section asks for it, and returns (B, W)."""
    mask = experience.response_mask
    advantages, returns = ppo_math.advantages_and_returns(
        experience.rewards, experience.values, experience.value_mask, section.gamma, section.lam
    )
    if section.lam_value is not None:  # VAPO (2504.05118): the critic learns returns of another lambda
        _, returns = ppo_math.advantages_and_returns(
            experience.rewards, experience.values, experience.value_mask, section.gamma, section.lam_value
        )
    if section.whiten_advantages:
        return ppo_math.whiten(advantages, mask), returns
    return advantages.masked_fill(~mask, 0.0), returns


def clipped_surrogate(logprobs: Tensor, given: Given, section: Ppo) -> PolicyTerms:
    """Compute the negative of PPO's clipped objective, the mean over the tokens of the minibatch."""
    return ppo_math.policy_loss(
        logprobs, given.old_logprobs, given.advantages, given.mask, section.cliprange, given.tokens
    )


ALGORITHMS = {
    "ppo": Algorithm(advantages=generalized_advantages, policy_loss=clipped_surrogate, needs_critic=True),
    "coderl": Algorithm(advantages=coderl.outcome_weighted, policy_loss=clipped_surrogate, needs_critic=False),
    "a2c": Algorithm(advantages=generalized_advantages, policy_loss=over_tokens, needs_critic=True),
    "reinforce": Algorithm(advantages=response_advantages, policy_loss=over_responses, needs_critic=False),
    "rloo": Algorithm(
        advantages=response_advantages, policy_loss=over_responses, needs_critic=False, goes_on_from_policy=True
    ),
    "grpo": Algorithm(
        advantages=response_advantages,
        policy_loss=group_relative,
        needs_critic=False,
        kl_in_reward=False,
        goes_on_from_policy=True,
    ),
    "nlpo": Algorithm(advantages=generalized_advantages, policy_loss=clipped_surrogate, needs_critic=True),
    "trpo": Algorithm(
        advantages=generalized_advantages, policy_loss=importance_weighted, needs_critic=True, step=trust_region_step
    ),
}
