"""PPO's arithmetic: pure functions on tensors, nothing else.

Shapes: B responses, W positions (columns). Column t of a response belongs to its t-th token. A response that ends by
itself before the longest allowed length has one more column, for the state after its end. `response_mask` is True at
tokens. `value_mask` is True at states that have a value: the tokens' columns and the column after the end. Numbers
outside a mask are never read.

A loss is a sum over a micro-batch divided by the count of its whole minibatch (`count`), so micro-batches of any size
add up to the minibatch's mean over tokens. Sources: Schulman et al. 2017 (arXiv 1707.06347), PPO; Schulman et al. 2015
(1506.02438), GAE; Ziegler et al. 2019 (1909.08593), KL as a reward; Huang et al. 2024 (2403.17031), details.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

WHITEN_EPSILON = 1e-8  # keeps a batch of equal values finite

KlEstimator = Literal["k1", "k2", "k3"]


# ---------------------------------------------------------------- masks and means


def response_mask(lengths: Tensor, width: int) -> Tensor:
    """Make a mask (B, W) that is True at the `lengths` (B,) tokens of each response."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def value_mask(lengths: Tensor, width: int) -> Tensor:
    """Make a mask (B, W) that is True at each token's state, and at the state after the last if the width has room."""
    return torch.arange(width, device=lengths.device)[None, :] <= lengths[:, None]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`; both (B, W). Scalar."""
    return masked_sum(values, mask) / mask.sum()


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask`; NaN elsewhere is ignored. Scalar."""
    return values.masked_fill(~mask, 0.0).sum()


def whiten(values: Tensor, mask: Tensor, *, centre: bool = True) -> Tensor:
    """`values` (B, W) scaled to unit variance (n - 1 in the denominator) over `mask`, and to mean 0 if `centre`.

    Zero outside the mask. One value alone has no variance: it is only centred.
    """
    mean = masked_mean(values, mask)
    count = mask.sum()
    variance = masked_sum((values - mean) ** 2, mask) / (count - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + WHITEN_EPSILON)
    return (whitened if centre else whitened + mean).masked_fill(~mask, 0.0)


# ---------------------------------------------------------------- rewards


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate (B, W) of KL(policy || reference) from tokens drawn from the policy, in nats.

    With r = reference / policy (Schulman 2020, joschu.net/blog/kl-approx.html): k1 = -log r, unbiased, may be
    negative; k2 = (log r)^2 / 2, biased, low variance; k3 = (r - 1) - log r, unbiased, never negative. k3 is taken
    by expm1: near r = 1 the difference exp(x) - 1 - x loses every digit that matters.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(kl: Tensor, scores: Tensor, lengths: Tensor, kl_coef: float, mask: Tensor) -> Tensor:
    """Per-token reward (B, W): -kl_coef x KL at each token, and the score (B,) once, where the response ends.

    The score is added one column after the last token if there is such a column, otherwise at the last token
    (2403.17031, detail 4: the value of the finished response learns the score itself).
    """
    rewards = (-kl_coef * kl).masked_fill(~mask, 0.0)
    end = lengths.clamp(max=kl.shape[1] - 1)  # a response of full width ends at its last token
    return rewards.scatter_add(1, end[:, None], scores[:, None].to(rewards.dtype))


def apply_missing_eos(
    scores: Tensor, ended: Tensor, *, penalty: float | None = None, score: float | None = None
) -> Tensor:
    """Scores (B,), minus `penalty` or replaced by `score` for responses that did not end by themselves.

    The penalty is TRL's rule. The fixed low score is the rule of Stiennon et al. 2020 (2009.01325) and of 2403.17031.
    """
    if penalty is not None:
        scores = torch.where(ended, scores, scores - penalty)
    if score is not None:
        scores = torch.where(ended, scores, torch.full_like(scores, score))
    return scores


# ---------------------------------------------------------------- advantages


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantages and returns, both (B, W); `rewards` and `values` (B, W), `mask` the value mask.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t (1506.02438, eq. 16).
    After a response's last state V and A are 0.
    """
    values = values.masked_fill(~mask, 0.0)
    rewards = rewards.masked_fill(~mask, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values
    running = torch.zeros_like(values[:, 0])
    backwards = []
    for t in range(values.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        backwards.append(running)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


# ---------------------------------------------------------------- losses


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, cap: float, mask: Tensor) -> Tensor:
    """Weights (B, W) of the tokens that were drawn by a sampler which rounds differently: min(p / q, cap); 1 outside.

    p is what the training forward gives for the policy that sampled, q what sampling itself gave. A token's policy loss
    times p / q has the expectation that it would have under p; the cap bounds its variance (Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training": truncated importance sampling).
    """
    log_ratio = (logprobs - sampler_logprobs).masked_fill(~mask, 0.0)
    return log_ratio.exp().clamp(max=cap)


@dataclass(frozen=True)
class PolicyTerms:
    """The policy's loss over a micro-batch and its share of the minibatch's means.

    All are scalars, except `ratio` and `clipped` (B, W). `clip_fraction` is None for a loss that does not clip.
    """

    loss: Tensor
    clip_fraction: Tensor | None
    approx_kl: Tensor
    ratio_mean: Tensor
    ratio: Tensor
    clipped: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float, count: Tensor | int
) -> PolicyTerms:
    """Clipped surrogate: -min(ratio A, clip(ratio, 1 - c, 1 + c) A), summed over `mask`, divided by `count`.

    1707.06347, eq. 7. `approx_kl` is k2 between the policy that sampled and the policy now.
    """
    losses, log_ratio, is_clipped = clipped_losses(logprobs, old_logprobs, advantages, mask, cliprange)
    with torch.no_grad():
        ratio = log_ratio.exp()
        clip_fraction = is_clipped.sum() / count
        approx_kl = masked_sum(log_ratio**2, mask) / 2 / count
        ratio_mean = masked_sum(ratio, mask) / count
    return PolicyTerms(losses.sum() / count, clip_fraction, approx_kl, ratio_mean, ratio, is_clipped)


def clipped_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped surrogate of each token, the log of its ratio, and where the clip holds it; all (B, W), 0 outside."""
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(plain, clipped).masked_fill(~mask, 0.0), log_ratio, (clipped > plain) & mask


@dataclass(frozen=True)
class ValueTerms:
    """The critic's loss over a micro-batch and its share of the minibatch's clip fraction."""

    loss: Tensor
    clip_fraction: Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float, count: Tensor | int
) -> ValueTerms:
    """Clipped value loss: half the squared error to the returns, summed over `mask`, divided by `count`.

    The error is the larger of two: of the value, and of the value clipped to old +- `cliprange` (2403.17031; Engstrom
    et al. 2020, 2005.12729).
    """
    clipped = torch.minimum(torch.maximum(values, old_values - cliprange), old_values + cliprange)
    plain_error = (values - returns) ** 2
    clipped_error = (clipped - returns) ** 2
    loss = masked_sum(torch.maximum(plain_error, clipped_error), mask) / 2 / count
    with torch.no_grad():
        clip_fraction = ((clipped_error > plain_error) & mask).sum() / count
    return ValueTerms(loss, clip_fraction)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over `mask`: 1 for a perfect critic, 0 for the mean of the returns.

    It is 0 if the returns do not vary.
    """
    kept_returns, kept_errors = returns[mask], (returns - values)[mask]
    spread = kept_returns.var(unbiased=False)
    rounding = (4 * torch.finfo(kept_returns.dtype).eps * kept_returns.abs().max()) ** 2
    explained = 1 - kept_errors.var(unbiased=False) / spread.clamp(min=1e-30)
    return torch.where(spread > rounding, explained, torch.zeros_like(spread))
