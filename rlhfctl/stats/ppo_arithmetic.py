"""Compute PPO's numbers of one response again, with NumPy in float64, from what a trace recorded.

This is a second implementation of the arithmetic of training/rl/ppo_math.py, written from the papers: it shares no code
with it, sums where the other recurs, and works on one response at a time. `rlhfctl tokens --explain` prints its numbers
beside the recorded ones, and a test adds them up to the logged losses.

Arrays hold one number per token (T) or per state (S); a response that ended by itself has one state more than tokens.
Sources: Schulman et al. 2017 (1707.06347), PPO; Schulman et al. 2015 (1506.02438), GAE; Ziegler et al. 2019
(1909.08593), KL as a reward; Huang et al. 2024 (2403.17031), details; Ahmadian et al. 2024 (2402.14740), reinforce and
rloo; Shao et al. 2024 (2402.03300), grpo. Reads and writes no files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]
WHITENING_EPSILON = 1e-8  # in whitening, added to the variance


def kl(policy: ArrayLike, reference: ArrayLike, kept: ArrayLike, estimator: str) -> Numbers:
    """Estimate the KL of each token (T,) in nats: k1 log(p/q), k2 half its square, k3 q/p - 1 - log(q/p).

    p is the policy's probability of the token among those that top-k and top-p kept, q the reference's (Schulman 2020).
    """
    log_q_over_p = _array(reference) - (_array(policy) - _array(kept))
    if estimator == "k1":
        return -log_q_over_p
    if estimator == "k2":
        return _array(np.square(log_q_over_p) / 2)
    return _array(np.expm1(log_q_over_p) - log_q_over_p)


def scaled_score(raw: float, mean: float, std: float, clip: float | Sequence[float] | None) -> float:
    """Compute a score less `mean`, over `std`, held within `clip`: [lowest, highest], or c for [-c, c]."""
    scaled = (raw - mean) / std
    if clip is None:
        return scaled
    low, high = clip if isinstance(clip, Sequence) else (-clip, clip)
    return min(max(scaled, low), high)


def final_score(raw: float, ended: bool, penalty: float | None, fixed: float | None) -> float:
    """Compute the score after what is due for a missing end: less `penalty`, or `fixed` in its place."""
    if ended:
        return raw
    if fixed is not None:
        return fixed
    return raw - penalty if penalty is not None else raw


def rewards(kl_per_token: ArrayLike, score: float, states: int, kl_coef: float) -> Numbers:
    """Compute the reward of each state (S,): -kl_coef x KL, and the score in the last one (1909.08593, eq. 2)."""
    given = np.zeros(states)
    tokens = _array(kl_per_token)
    given[: len(tokens)] = -kl_coef * tokens
    given[-1] += score
    return given


def rescaled(values: ArrayLike, mean: float, std: float, *, centre: bool) -> Numbers:
    """Whiten `values` by the batch's mean and standard deviation; without `centre` the mean is added again."""
    scaled = _array((_array(values) - mean) / np.sqrt(std**2 + WHITENING_EPSILON))
    return scaled if centre else scaled + mean


def deltas(rewards_: ArrayLike, values: ArrayLike, gamma: float) -> Numbers:
    """Compute the critic's one-step errors (S,): r + gamma V(next) - V. After the last state V is 0."""
    value = _array(values)
    return _array(rewards_) + gamma * np.append(value[1:], 0.0) - value


def discounted_sums(terms: ArrayLike, rate: float) -> Numbers:
    """Sum the terms from each position on, discounted: sum over l of rate^l x[t+l]."""
    term = _array(terms)
    weights = rate ** np.arange(len(term))
    return np.array([weights[: len(term) - t] @ term[t:] for t in range(len(term))])


def advantages(deltas_: ArrayLike, gamma: float, lam: float) -> Numbers:
    """Compute generalized advantages (S,): the sum over l of (gamma lam)^l delta[t+l] (1506.02438, eq. 16)."""
    return discounted_sums(deltas_, gamma * lam)


def n_step_advantages(rewards_: ArrayLike, values: ArrayLike, gamma: float) -> Numbers:
    """Compute the advantages of lambda 1 (S,) without any delta: the discounted rewards to come, less V (eq. 18)."""
    return discounted_sums(rewards_, gamma) - _array(values)


def objective(ratio: ArrayLike, advantage: ArrayLike, cliprange: float) -> tuple[Numbers, Numbers]:
    """Compute both terms of the clipped objective (T,), ratio A and clip(ratio) A; their minimum counts (eq. 7)."""
    plain, wanted = _array(ratio), _array(advantage)
    return plain * wanted, np.clip(plain, 1 - cliprange, 1 + cliprange) * wanted


def value_errors(
    values: ArrayLike, old: ArrayLike, returns: ArrayLike, cliprange_value: float
) -> tuple[Numbers, Numbers]:
    """Compute both squared errors of the critic (S,): of V, and of V held within cliprange_value of what it was.

    The larger one counts (Engstrom et al. 2020, 2005.12729, section 3).
    """
    was, due = _array(old), _array(returns)
    near = np.clip(_array(values), was - cliprange_value, was + cliprange_value)
    return np.square(_array(values) - due), np.square(near - due)


def response_reward(score: float, kl_per_token: ArrayLike, kl_coef: float) -> float:
    """Compute the reward of a whole response: its score less kl_coef x the sum of its tokens' KL (2402.14740)."""
    return score - kl_coef * float(_array(kl_per_token).sum())


def k3(logprobs: ArrayLike, reference: ArrayLike, kept: ArrayLike) -> Numbers:
    """Compute the KL of each token (T,) that is a part of grpo's loss (2402.03300, eq. 4): k3, from the policy now."""
    return kl(logprobs, reference, kept, "k3")


def losses(episodes: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, float]:
    """Compute the losses of an update from the traces of all its episodes and the keys of its `ppo` section.

    Returns the mean over the minibatches, as the metrics log it. What the algorithm does not have (a critic's losses, a
    clip) is left out.
    """
    tokens: dict[tuple[int, int], list[Numbers]] = defaultdict(list)
    states: dict[tuple[int, int], list[Numbers]] = defaultdict(list)
    for episode in episodes:
        for number, epoch in enumerate(episode["epochs"]):
            minibatch = (number, epoch["minibatch"])
            whole = settings.get("algorithm") == "trpo"  # its policy learns from the whole batch
            tokens[(number, 0) if whole else minibatch].append(_token_terms(episode, epoch, settings))
            if "values" in epoch:
                states[minibatch].append(_state_terms(episode, epoch, settings.get("cliprange_value", np.inf)))
    found = {"policy_loss": float(np.mean([added_up([one[0] for one in few], settings) for few in tokens.values()]))}
    found |= dict(zip(("_", "approx_kl", "ratio", "clip_fraction"), _mean_of_means(tokens.values()), strict=True))
    del found["_"]
    if not clips(settings):
        del found["clip_fraction"]
    if states:
        found |= dict(zip(("value_loss", "value_clip_fraction"), _mean_of_means(states.values()), strict=True))
    return found


def clips(settings: Mapping[str, Any]) -> bool:
    """Tell whether the algorithm's loss clips the ratio of probabilities."""
    return has_ratio(settings) and settings.get("algorithm") != "trpo"


def has_ratio(settings: Mapping[str, Any]) -> bool:
    """Tell whether the algorithm's loss has a ratio of probabilities; if not, it is -A log p."""
    return settings.get("algorithm", "ppo") not in ("a2c", "reinforce", "rloo")


def added_up(losses_: Sequence[Numbers], settings: Mapping[str, Any]) -> float:
    """Add up the losses of a minibatch's tokens, one array per response, in the way of the algorithm.

    reinforce and rloo: the sum over tokens, the mean over responses (2402.14740). grpo: by `loss_type`, the mean over
    tokens and then over responses (grpo), over all tokens (dapo), or the sum over responses x response_length
    (dr_grpo). All others: the mean over all tokens.
    """
    algorithm, every = settings.get("algorithm", "ppo"), np.concatenate(losses_)
    if algorithm in ("reinforce", "rloo"):
        return float(every.sum() / len(losses_))
    if algorithm == "grpo" and settings["loss_type"] == "grpo":
        return float(np.mean([one.mean() for one in losses_]))
    if algorithm == "grpo" and settings["loss_type"] == "dr_grpo":
        return float(every.sum() / (len(losses_) * settings["response_length"]))
    return float(every.mean())


def _token_terms(episode: Mapping[str, Any], epoch: Mapping[str, Any], settings: Mapping[str, Any]) -> Numbers:
    """Compute loss, half the squared log-ratio, ratio and clipped of each token: (4, T)."""
    now = _array(epoch["logprobs"])
    log_ratio = now - _array(episode["policy_logprobs"])
    ratio = np.exp(log_ratio)
    advantages_ = _array(episode["advantages"])
    if episode.get("importance") is not None:  # with ppo.importance_cap
        advantages_ = advantages_ * _array(episode["importance"])
    if not has_ratio(settings):
        return np.stack([-advantages_ * now, np.square(log_ratio) / 2, ratio, np.zeros(len(now))])
    plain, clipped = objective(ratio, advantages_, settings["cliprange"] if clips(settings) else np.inf)
    loss = -np.minimum(plain, clipped)
    if settings.get("algorithm") == "grpo":
        kept = episode.get("kept_logprobs") or np.zeros(len(now))
        loss = loss + settings["kl_coef"] * k3(now, episode["reference_logprobs"], kept)
    return np.stack([loss, np.square(log_ratio) / 2, ratio, clipped < plain])


def _state_terms(episode: Mapping[str, Any], epoch: Mapping[str, Any], cliprange_value: float) -> Numbers:
    """Compute half the critic's squared error, and whether the clip held it, of each state: (2, S)."""
    plain, near = value_errors(epoch["values"], episode["values"], episode["returns"], cliprange_value)
    return np.stack([np.maximum(plain, near) / 2, near > plain])


def _mean_of_means(groups: Iterable[Sequence[Numbers]]) -> list[float]:
    """Average over all columns of each group's tables, then over the groups."""
    means = [np.concatenate(group, axis=1).mean(axis=1) for group in groups]
    return [float(value) for value in np.mean(means, axis=0)]


def _array(values: ArrayLike) -> Numbers:
    return np.asarray(values, dtype=np.float64)
