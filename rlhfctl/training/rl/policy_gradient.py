"""Compute the policy losses of a2c, reinforce, rloo and grpo: pure functions on tensors.

a2c, reinforce and rloo take one optimizer step per update, so the policy that learns is the one that sampled: their
loss is -A log p (Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning"), without a ratio of two policies and without clipping. Huang et al. 2022 (arXiv 2205.09123) show that PPO's
clipped objective has the same gradient in its first step. grpo clips the ratio as PPO does, and the KL is a part of its
loss.

What a sum over tokens is divided by differs, and each function says by what. The sum over a response's tokens of log p
is the log-probability of the whole response. Divided by the number of responses, it gives the gradient of the mean
reward: this is what an algorithm with one reward per response estimates. Divided by the number of tokens in the batch,
the gradient is the same but for a factor that all tokens of the batch share. Divided by each response's own length, a
token of a short response counts for more than one of a long response.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.minibatch import Given
from rlhfctl.training.rl.ppo_math import PolicyTerms, masked_sum


def over_tokens(logprobs: Tensor, given: Given, section: Ppo) -> PolicyTerms:
    """Compute -A log p from `logprobs` (b, w): the mean over the tokens of the minibatch, as PPO takes it.

    Mnih et al. 2016 (arXiv 1602.01783), section 4.
    """
    return _score_function(logprobs, given, given.tokens)


def over_responses(logprobs: Tensor, given: Given, section: Ppo) -> PolicyTerms:
    """Compute -A log p(response): the sum of `logprobs` (b, w) over tokens, the mean over the minibatch's responses.

    Ahmadian et al. 2024 (arXiv 2402.14740), section 3: the whole response is one action.
    """
    return _score_function(logprobs, given, given.responses)


def _score_function(logprobs: Tensor, given: Given, count: Tensor | int) -> PolicyTerms:
    """Compute the sum of -A log p over the tokens, divided by `count`, and the metrics as means over the tokens."""
    with torch.no_grad():
        log_ratio = (logprobs - given.old_logprobs).masked_fill(~given.mask, 0.0)
        ratio = log_ratio.exp()
        approx_kl = masked_sum(log_ratio**2, given.mask) / 2 / given.tokens
        ratio_mean = masked_sum(ratio, given.mask) / given.tokens
    advantages = given.advantages.masked_fill(~given.mask, 0.0)  # no NaN reaches a gradient through a product
    loss = masked_sum(-advantages * logprobs, given.mask) / count
    nothing = torch.zeros_like(given.mask)
    return PolicyTerms(loss, None, approx_kl, ratio_mean, ratio, nothing)


def group_relative(logprobs: Tensor, given: Given, section: Ppo) -> PolicyTerms:
    """Compute the loss of grpo from `logprobs` (b, w): per token -min(ratio A, clip(ratio) A) + kl_coef x KL.

    Shao et al. 2024 (arXiv 2402.03300), eq. 3 and 4: the KL of each token is k3, q/p - 1 - log(q/p), from the policy
    as it learns; its gradient counts. `loss_type` says how tokens are added up, by the names of TRL's GRPOConfig:

        grpo      the mean over each response's tokens, then over responses (eq. 3)
        dapo      the mean over all tokens of the minibatch (Yu et al. 2025, arXiv 2503.14476, eq. 8)
        dr_grpo   the sum, divided by responses x response_length (Liu et al. 2025, arXiv 2503.20783)
    """
    advantages, mask, clip = given.advantages, given.mask, section.cliprange
    terms = ppo_math.policy_loss(logprobs.detach(), given.old_logprobs, advantages, mask, clip, given.tokens)
    losses, _, _ = ppo_math.clipped_losses(logprobs, given.old_logprobs, advantages, mask, clip)
    now, reference = (numbers.masked_fill(~mask, 0.0) for numbers in (logprobs, given.ref_logprobs))
    losses = losses + section.kl_coef * ppo_math.kl_estimate(now, reference, "k3")
    if section.loss_type == "grpo":
        loss = (losses.sum(1) / mask.sum(1).clamp(min=1)).sum() / given.responses
    elif section.loss_type == "dapo":
        loss = losses.sum() / given.tokens
    else:
        loss = losses.sum() / (given.responses * section.response_length)
    return dataclasses.replace(terms, loss=loss)
