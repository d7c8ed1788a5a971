"""Translate OpenRLHF's advantage estimators into `ppo.algorithm`, with what is different there."""

from __future__ import annotations

from typing import Any

from rlhfctl.importing.findings import Fields
from rlhfctl.recipe.sections.algorithm import COMPARES_RESPONSES

_ONE_STEP = "one optimizer step per update, without a clip; there PPO's clipped loss"
# Advantage estimator -> our algorithm, its keys, and what is different there.
_ALGORITHMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "reinforce": ("reinforce", {}, f"over the mean of earlier rewards, there over the batch's; {_ONE_STEP}"),
    "rloo": ("rloo", {}, _ONE_STEP),
    "group_norm": ("grpo", {}, "GRPO's scores by group"),
    "dr_grpo": ("grpo", {"ppo.scale_rewards": "none"}, "scores less the group's mean, without division"),
    "reinforce_baseline": (
        "grpo", {"ppo.scale_rewards": "batch"}, "scores less the group's mean, divided by the batch's deviation",
    ),
}  # fmt: skip


def algorithm_of(fields: Fields) -> str:
    """Carry the advantage estimator over as ppo.algorithm; return the algorithm's name."""
    estimator = str(fields.get("advantage_estimator", "gae"))
    if estimator not in _ALGORITHMS:
        if estimator == "gae":
            fields.same("advantage_estimator", "generalized advantage estimation")
        fields.drop("advantage_estimator", "ppo.algorithm has no such estimator: it stays ppo, with a critic")
        return "ppo"
    algorithm, options, words = _ALGORITHMS[estimator]
    fields.carry("advantage_estimator", "ppo.algorithm", algorithm, words)
    for key, value in options.items():
        fields.note(key, value, f"advantage_estimator: {estimator}")
    if algorithm in COMPARES_RESPONSES and fields.get("n_samples_per_prompt", 1) < 2:
        fields.settle("ppo.num_generations", f"set it to 2 or more: {algorithm} compares the responses to a prompt")
    return algorithm


def kl_loss(fields: Fields, algorithm: str) -> None:
    """Account for use_kl_loss: the KL is in grpo's loss, and in the rewards of all others."""
    if fields.on("use_kl_loss") and algorithm == "grpo":
        fields.same("use_kl_loss", "the KL is in grpo's loss, by k3")
    elif fields.on("use_kl_loss"):
        fields.drop("use_kl_loss", "the KL is taken from the rewards, not added to the loss")
    elif algorithm == "grpo":
        fields.changed("use_kl_loss", "off there; grpo has the KL in its loss")
    fields.same("use_kl_loss", "off")
