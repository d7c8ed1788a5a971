"""Compute advantages per response, without a critic: the reward of the whole response over a baseline.

Every token of a response has the same advantage, (R - baseline) / scale. R is the sum of the rewards of its tokens: the
score less kl_coef x KL, or the score alone where the KL is in the loss (grpo). The algorithms differ in `compared`:

    reinforce   over the mean R of all earlier updates
    rloo        over the mean R of the other responses to the same prompt
    grpo        over the mean R of all responses to the same prompt, in units of their standard deviation

Responses to the same prompt follow one another in a batch (orders.py). Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.experience import Experience

SCALE_EPSILON = 1e-4  # keeps a group of equal rewards finite; TRL's GRPOTrainer has the same number

Compared = Callable[[Tensor, Experience, Ppo], tuple[Tensor, Tensor]]
"""(rewards of whole responses (B,), the experience, the section) -> their baselines and scales, both (B,)."""


def over_earlier_updates(rewards: Tensor, experience: Experience, section: Ppo) -> tuple[Tensor, Tensor]:
    """Return the mean reward of all earlier updates as each response's baseline; 0 in the first update. Scale 1.

    Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-style optimization for learning from human feedback in
    LLMs" (arXiv 2402.14740), section 3: REINFORCE with b_MA = 1/S x the sum of R over the S earlier training steps. The
    baseline does not depend on the responses of this update, so the gradient stays unbiased (Williams 1992).
    """
    return torch.full_like(rewards, experience.earlier_reward), torch.ones_like(rewards)


def over_other_responses(rewards: Tensor, experience: Experience, section: Ppo) -> tuple[Tensor, Tensor]:
    """Return the mean reward of the other responses to the same prompt as each response's baseline (B,). Scale 1.

    REINFORCE leave-one-out: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024
    (2402.14740), section 3: A_i = R_i - 1/(k - 1) x the sum of R_j over j != i.
    """
    groups = rewards.view(-1, section.num_generations)
    others = (groups.sum(1, keepdim=True) - groups) / (section.num_generations - 1)
    return others.reshape(-1), torch.ones_like(rewards)


def over_group(rewards: Tensor, experience: Experience, section: Ppo) -> tuple[Tensor, Tensor]:
    """Return the mean reward of all responses to the same prompt as each response's baseline (B,), and its scale (B,).

    Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), section 4.1.2: A_i = (r_i - mean(r)) / std(r). The standard
    deviation (n - 1 in the denominator, plus 1e-4) is that of the group, or of the batch (`scale_rewards: batch`); the
    scale is 1 with `none` (Liu et al. 2025, arXiv 2503.20783: division favours prompts whose rewards hardly differ).
    """
    groups = rewards.view(-1, section.num_generations)
    means = groups.mean(1, keepdim=True).expand_as(groups).reshape(-1)
    if section.scale_rewards == "none":
        return means, torch.ones_like(rewards)
    if section.scale_rewards == "batch":
        return means, (rewards.std() + SCALE_EPSILON).expand_as(rewards)
    return means, (groups.std(1, keepdim=True) + SCALE_EPSILON).expand_as(groups).reshape(-1)


COMPARED: dict[str, Compared] = {
    "reinforce": over_earlier_updates,
    "rloo": over_other_responses,
    "grpo": over_group,
}


def response_rewards(experience: Experience) -> Tensor:
    """Compute the reward (B,) of each whole response: the sum over its columns."""
    return experience.rewards.sum(1)


def response_advantages(experience: Experience, section: Ppo) -> tuple[Tensor, None]:
    """Compute the advantages (B, W) by the section's algorithm: one number per response, at each of its tokens."""
    rewards, mask = response_rewards(experience), experience.response_mask
    baselines, scales = COMPARED[section.algorithm](rewards, experience, section)
    advantages = ((rewards - baselines) / scales)[:, None]
    return advantages.expand_as(mask).masked_fill(~mask, 0.0), None


def flat_groups(rewards: Tensor, generations: int) -> float:
    """Compute the share of prompts whose responses all have the same reward (B,): they have no advantages."""
    groups = rewards.view(-1, generations)
    return float((groups == groups[:, :1]).all(1).double().mean())
