"""Compute the policy-gradient loss -A log p of the algorithms that take one optimizer step per update (a2c).

Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning"; Mnih et al.
2016, "Asynchronous methods for deep reinforcement learning" (arXiv 1602.01783), section 4. The policy that learns is
still the one that sampled, so no ratio of the two and no clipping is needed. Huang et al. 2022 (arXiv 2205.09123) show
that PPO's clipped objective has this gradient in its first step. Pure functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.minibatch import Given
from rlhfctl.training.rl.ppo_math import PolicyTerms, masked_sum


def over_tokens(logprobs: Tensor, given: Given, section: Ppo) -> PolicyTerms:
    """Compute -A log p from `logprobs` (b, w): the mean over the tokens of the minibatch, as PPO takes it."""
    return _terms(logprobs, given, given.tokens)


def _terms(logprobs: Tensor, given: Given, count: Tensor | int) -> PolicyTerms:
    """Compute the sum of -A log p over the tokens, divided by `count`, and the metrics as means over the tokens."""
    with torch.no_grad():
        log_ratio = (logprobs - given.old_logprobs).masked_fill(~given.mask, 0.0)
        ratio = log_ratio.exp()
        approx_kl = masked_sum(log_ratio**2, given.mask) / 2 / given.tokens
        ratio_mean = masked_sum(ratio, given.mask) / given.tokens
    loss = masked_sum(-given.advantages * logprobs, given.mask) / count
    nothing = torch.zeros_like(given.mask)
    return PolicyTerms(loss, torch.zeros_like(approx_kl), approx_kl, ratio_mean, ratio, nothing)
