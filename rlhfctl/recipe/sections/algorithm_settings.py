"""Define the sub-sections of `ppo` that hold the settings of a single algorithm: `ppo.trpo` and `ppo.nlpo`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Section


class Trpo(Section):
    """The trust region of `algorithm: trpo`, and how the policy's step in it is found; names as in sb3-contrib.

    Schulman et al. 2015 (arXiv 1502.05477), appendix C.
    """

    max_kl: float = Field(
        0.01, gt=0, description="Largest exact KL of an update, from the policy that sampled, in nats per token."
    )
    cg_max_steps: int = Field(
        10,
        gt=0,
        description="Steps of conjugate gradient, each a product with the Fisher matrix on the whole batch.",
    )
    cg_damping: float = Field(
        0.1, ge=0, description="Multiple of the identity added to the Fisher matrix (0: none), which steadies a step."
    )
    line_search_max_iter: int = Field(
        10, gt=0, description="Lengths of the step that are tried; after them the policy stays as it is."
    )
    line_search_shrinking_factor: float = Field(
        0.8, gt=0, lt=1, description="Factor by which a step that is refused is shortened."
    )


class Nlpo(Section):
    """The masking policy of `algorithm: nlpo`, an older copy of the policy; names as in RL4LMs.

    Ramamurthy et al. 2022 (arXiv 2210.01241), section 4.
    """

    top_mask: float = Field(
        0.9,
        gt=0,
        le=1,
        description="The policy samples from the masking policy's likeliest tokens that make up this probability (1: "
        "from all).",
    )
    target_update_iterations: int = Field(
        20, gt=0, description="Updates after which the masking policy becomes a copy of the policy again."
    )


NLPO_RULES: tuple[Rule[Any], ...] = (
    Rule(
        "sampler",
        "nlpo samples beside a masking policy, which slots cannot do",
        "use sampler: batch",
        lambda ppo: ppo.algorithm == "nlpo" and ppo.sampler == "slots",
        about=("algorithm",),
    ),
)


TRPO_RULES: tuple[Rule[Any], ...] = (
    Rule(
        "critic",
        "a head that trains the policy's weights would move the policy out of trpo's trust region",
        "set {at}.critic_trains_trunk: false, or critic: adapter or model",
        lambda ppo: ppo.algorithm == "trpo" and ppo.critic_kind == "head" and ppo.critic_trains_trunk,
        about=("algorithm", "critic_trains_trunk"),
    ),
    Rule(
        "bf16",
        "rounding to bfloat16 is coarser than the KL that trpo bounds",
        "remove it, or use another algorithm",
        lambda ppo: ppo.algorithm == "trpo" and ppo.bf16,
        about=("algorithm",),
    ),
)
