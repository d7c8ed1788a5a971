"""Define keys of `ppo` that are details of published systems: types, descriptions, and rules between them.

Sources: Ziegler et al. 2019 (arXiv 1909.08593), Stiennon et al. 2020 (2009.01325), Ouyang et al. 2022 (InstructGPT,
2203.02155), Huang et al. 2024 (2403.17031), Yue et al. 2025 (VAPO, 2504.05118). docs/ppo.md says which key is which
paper's detail. `Ppo` in ppo.py names each of these types once, with the default that leaves the detail out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rlhfctl.recipe.sections.algorithm import uses
from rlhfctl.recipe.sections.base import Rule, Section

LARGEST_KL_ERROR = 0.2  # Ziegler et al. 2019, section 2.2: the relative error of the KL is clipped at it
PtxData = Literal["demonstrations", "pretraining"]
DETAIL_KEYS = (
    "ptx", "kl_target", "kl_horizon", "ema_decay", "normalize_scores", "score_clip", "critic_learning_rate",
    "critic_warmup_steps", "policy_starts_after", "lam_value",
)  # fmt: skip


class Ptx(Section):
    """Next-token loss on other text in each step of the policy: InstructGPT's PPO-ptx."""

    data: PtxData = Field(
        "demonstrations", description="Data set of the rows: data.demonstrations, or data.pretraining."
    )
    coef: float = Field(
        27.8,
        gt=0,
        description="Coefficient of the loss, which is a mean over the tokens of a step's rows (InstructGPT: 27.8).",
    )
    ratio: float = Field(8.0, gt=0, description="Rows per response of a minibatch (InstructGPT: 8).")
    batch_size: int | None = Field(
        None, gt=0, description="Rows in memory at once (null: as many as ppo.per_device_train_batch_size)."
    )
    max_length: int | None = Field(
        None, gt=1, description="Maximum length of a row in tokens; longer rows are cut (null: the model's context)."
    )


KlTarget = Annotated[
    float | None,
    Field(
        gt=0,
        description="KL in nats per response towards which kl_coef, then the first value, is moved after each update "
        "(null: kl_coef is fixed).",
    ),
]
KlHorizon = Annotated[
    int,
    Field(
        gt=0,
        description="With kl_target, responses over which kl_coef changes by the relative error of the KL: an update "
        "multiplies it by 1 + error x batch size / kl_horizon, with the error clipped to -0.2 .. 0.2.",
    ),
]
EmaDecay = Annotated[
    float | None,
    Field(
        gt=0,
        lt=1,
        description="Decay per optimizer step of an exponential moving average of the policy's weights, which is "
        "evaluated and published in place of the last weights (null: no average; InstructGPT: 0.992).",
    ),
]
CriticLearningRate = Annotated[
    float | None, Field(gt=0, description="Peak learning rate of the critic (null: learning_rate).")
]
CriticWarmupSteps = Annotated[
    int | None,
    Field(
        ge=0,
        description="Number of updates over which the critic's learning rate rises from 0 (null: warmup_steps).",
    ),
]
PolicyStartsAfter = Annotated[
    int, Field(ge=0, description="Number of first updates in which the critic alone learns (value pretraining).")
]
LamValue = Annotated[
    float | None,
    Field(ge=0, le=1, description="Lambda of the returns that the critic learns (null: lam, as for the policy)."),
]
NormalizeScores = Annotated[
    Literal["running", "running_std"] | None,
    Field(
        description="Normalization of the scores by all scores so far: running (less their mean, over their "
        "deviation), or running_std (over their deviation alone; null: none)."
    ),
]
ScoreClip = Annotated[
    float | list[float] | None,
    Field(
        description="Clip range of a score, after its normalization: [lowest, highest], or one number c for [-c, c] "
        "(null: no clipping)."
    ),
]


def _no_range(ppo: Any) -> bool:
    limits = ppo.score_clip
    if isinstance(limits, list):
        return len(limits) != 2 or limits[0] >= limits[1]
    return limits is not None and limits <= 0


def _horizon_in_vain(ppo: Any) -> bool:
    refused = ppo.engine == "trl" or not uses(ppo.trains_by, "kl_horizon")  # by other rules
    return not refused and ppo.kl_target is None and ppo.is_set("kl_horizon")


DETAIL_RULES: tuple[Rule[Any], ...] = (
    Rule(
        "kl_estimator",
        "TRL's PPOTrainer has k1 and k3",
        "use one of them, or engine: rlhfctl",
        lambda ppo: ppo.engine == "trl" and ppo.kl_estimator == "exact",
        about=("engine",),
    ),
    Rule(
        "kl_estimator",
        "exact is a sum over the whole vocabulary, but top_k, top_p or nlpo leave tokens out",
        "use k1, k2 or k3, or sample from all tokens",
        lambda ppo: ppo.kl_estimator == "exact" and (ppo.top_k > 0 or ppo.top_p < 1 or ppo.algorithm == "nlpo"),
        about=("top_k", "top_p", "algorithm"),
    ),
    Rule(
        "kl_target",
        "kl_coef is multiplied by a factor in each update: from 0 it never moves",
        "set kl_coef above 0, or remove kl_target",
        lambda ppo: ppo.kl_target is not None and ppo.kl_coef == 0,
        about=("kl_coef",),
    ),
    Rule(
        "kl_horizon",
        "is for kl_target, which is not set",
        "set {at}.kl_target, or remove it",
        _horizon_in_vain,
        about=("kl_target",),
    ),
    Rule(
        "kl_horizon",
        "is too short for batches of {batch_size}: a KL far below the target would make the coefficient 0 or negative",
        "raise it to {batch_size} or more",
        lambda ppo: ppo.kl_target is not None and ppo.kl_horizon <= LARGEST_KL_ERROR * ppo.batch_size,
        about=("kl_target", "per_device_train_batch_size", "gradient_accumulation_steps"),
    ),
    Rule(
        "policy_starts_after",
        "leaves no update to the policy: there are {updates}",
        "lower it, or raise total_episodes",
        lambda ppo: ppo.policy_starts_after > 0 and ppo.policy_starts_after >= ppo.updates,
        about=("total_episodes", "per_device_train_batch_size", "gradient_accumulation_steps"),
    ),
    Rule(
        "score_clip",
        "is no range of scores",
        "write [lowest, highest], or a number above 0",
        _no_range,
    ),
)
