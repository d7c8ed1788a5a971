"""Compute the metrics of one update from its experience and its optimizer steps (docs/metrics.md explains each)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.algorithm import COMPARES_RESPONSES
from rlhfctl.rewards.episode import part_means
from rlhfctl.stats.repetition import repetition
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.response_advantages import flat_groups, response_rewards


def update_metrics(experience: Experience, steps: Sequence[dict[str, float]], section: Ppo) -> dict[str, float]:
    """Compute the metrics of one update by name; without a critic, the critic's metrics are left out."""
    mask = experience.response_mask
    kl_coef = experience.penalty(section)
    kl, score = float(experience.kl.sum(1).mean()), float(experience.scores.mean())
    metrics = {
        "score": score,
        "kl": kl,
        "entropy": -float(experience.logprobs.masked_fill(~mask, 0.0).sum(1).mean()),
        "length": float(experience.lengths.double().mean()),
        "eos_rate": float(experience.ended.double().mean()),
        "repetition": repetition([response.ids for response in experience.responses]),
        "non_score_reward": -kl_coef * kl,
        "rlhf_reward": score - kl_coef * kl,
        "raw_score": float(experience.raw_scores.mean()),
        "raw_score_std": float(experience.raw_scores.std(unbiased=False)),
    }
    if section.kl_target is not None:
        metrics["kl_coef"] = kl_coef
    if experience.values.numel():
        states = experience.value_mask
        explained = ppo_math.explained_variance(experience.values, experience.returns, states)
        metrics |= {
            "value_mean": float(ppo_math.masked_mean(experience.values, states)),
            "explained_variance": float(explained),
        }
    if experience.beliefs.numel():
        metrics |= {
            "greedy_score": float(experience.baselines.mean()),
            "belief": float(ppo_math.masked_mean(experience.beliefs, mask)),
        }
    if section.trains_by == "reinforce":
        metrics["baseline"] = experience.earlier_reward
    if section.trains_by in COMPARES_RESPONSES:
        metrics["flat_groups"] = flat_groups(response_rewards(experience), section.num_generations)
    metrics |= {
        "token_entropy": -float(ppo_math.masked_mean(experience.logprobs, mask)),
        "optimizer_steps": float(len(steps)),
    }
    if experience.importance.numel() and section.importance_cap is not None:
        metrics |= {
            "importance": float(ppo_math.masked_mean(experience.importance, mask)),
            "importance_capped": float((experience.importance[mask] >= section.importance_cap).double().mean()),
        }
    if experience.masked:
        metrics |= _mask_metrics(experience)
    metrics |= part_means(experience.parts) | experience.uncertain | experience.logged
    metrics |= {name: statistics.fmean(s[name] for s in steps) for name in steps[0]}
    return metrics if experience.rollout_gap is None else metrics | {"rollout_gap": experience.rollout_gap}


def _mask_metrics(experience: Experience) -> dict[str, float]:
    """Compute how much the masking policy leaves: the policy's probability of the allowed tokens, and their number."""
    kept = torch.tensor([log for response in experience.responses for log in response.kept], dtype=torch.float64)
    bits = sum(int.from_bytes(response.allowed, "little").bit_count() for response in experience.responses)
    return {"mask_kept": float(kept.exp().mean()), "mask_size": bits / len(kept)}
