"""Define `ppo.algorithm`: the names of the algorithms, and the keys of `ppo` that only some of them use.

A key that an algorithm does not use is refused when it is set, and is left out of the resolved recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from rlhfctl.recipe.sections.base import Rule

AlgorithmName = Literal["ppo", "a2c", "reinforce", "rloo", "grpo", "trpo", "nlpo"]
ScaleRewards = Literal["group", "batch", "none"]
LossType = Literal["grpo", "dapo", "dr_grpo"]
NAMES: tuple[str, ...] = get_args(AlgorithmName)

BY_OUTCOMES = "coderl"
"""What the section trains by with `outcome_critic`: ppo with other returns. It is no name for `algorithm`."""

_CRITIC = ("ppo", "a2c", "trpo", "nlpo")
_SEVERAL_STEPS = ("ppo", BY_OUTCOMES, "grpo", "trpo", "nlpo")
_CLIPPED = ("ppo", BY_OUTCOMES, "grpo", "nlpo")
_KL_IN_REWARD = ("ppo", BY_OUTCOMES, "a2c", "reinforce", "rloo", "trpo", "nlpo")
_GRADIENT_CRITIC = ("ppo", "a2c", "nlpo")  # critics that learn in the policy's own optimizer steps
_ALL_BUT_TRPO = (*(name for name in NAMES if name != "trpo"), BY_OUTCOMES)
_ALL_BUT_NLPO = (*(name for name in NAMES if name != "nlpo"), BY_OUTCOMES)

# Key of `ppo` -> the algorithms that use it. Keys that are not listed here are used by all.
USED_BY: dict[str, tuple[str, ...]] = {
    "critic": _CRITIC,
    "critic_from": _CRITIC,
    "critic_trains_trunk": _CRITIC,
    "vf_coef": _CRITIC,
    "gamma": _CRITIC,
    "lam": _CRITIC,
    "whiten_rewards": _CRITIC,
    "whiten_advantages": _CRITIC,
    "cliprange_value": ("ppo", "trpo", "nlpo"),
    "kl_estimator": _KL_IN_REWARD,
    "cliprange": _CLIPPED,
    "num_ppo_epochs": _SEVERAL_STEPS,
    "num_mini_batches": _SEVERAL_STEPS,
    "target_kl": _CLIPPED,
    "scale_rewards": ("grpo",),
    "loss_type": ("grpo",),
    "top_k": _ALL_BUT_NLPO,
    "top_p": _ALL_BUT_NLPO,
    "critic_learning_rate": _GRADIENT_CRITIC,
    "critic_warmup_steps": _GRADIENT_CRITIC,
    "policy_starts_after": _GRADIENT_CRITIC,
    "lam_value": _CRITIC,
    "kl_target": _KL_IN_REWARD,
    "kl_horizon": _KL_IN_REWARD,
    "normalize_scores": NAMES,
    "score_clip": NAMES,
    "ptx": _ALL_BUT_TRPO,
    "trpo": ("trpo",),
    "nlpo": ("nlpo",),
}
COMPARES_RESPONSES = ("rloo", "grpo")
"""The algorithms that compare the responses to a prompt with each other: `num_generations` must be 2 at least."""


def uses(trains_by: str, key: str) -> bool:
    """Tell whether the algorithm uses a key of `ppo`. An algorithm has a critic if it uses the key `critic`."""
    return trains_by in USED_BY.get(key, (trains_by,))


def unused_keys(trains_by: str) -> tuple[str, ...]:
    """Return the keys of `ppo` that the algorithm does not use."""
    return tuple(key for key in USED_BY if not uses(trains_by, key))


def unused_key_rules() -> list[Rule[Any]]:
    """Make the rules of `ppo` that refuse a key which the algorithm does not use, if it is set."""
    by_outcomes = [
        Rule(
            key,
            "has no part in the returns of outcome_critic",
            "remove it, or outcome_critic",
            _set_in_vain(key, with_outcomes=True),
            about=("outcome_critic",),
        )
        for key in unused_keys(BY_OUTCOMES)
    ]
    named = [
        Rule(
            key,
            "{algorithm} does not use it",
            f"remove it, or use {{at}}.algorithm: {', '.join(name for name in NAMES if name in users)}",
            _set_in_vain(key, with_outcomes=False),
            about=("algorithm",),
        )
        for key, users in USED_BY.items()
        if not set(NAMES) <= set(users)
    ]
    return [*by_outcomes, *named]


def _set_in_vain(key: str, *, with_outcomes: bool) -> Callable[[Any], bool]:
    def broken(ppo: Any) -> bool:
        by_outcomes = ppo.trains_by == BY_OUTCOMES
        return by_outcomes == with_outcomes and ppo.is_set(key) and not uses(ppo.trains_by, key)

    return broken
