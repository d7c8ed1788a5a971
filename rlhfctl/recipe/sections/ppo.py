"""Define the `ppo` section: reinforcement learning against the reward, with TRL's PPOConfig keys and some more.

Longer than 400 lines because the section has more keys than any other, each with its rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlhfctl.recipe.sections.algorithm import (
    BY_OUTCOMES,
    COMPARES_RESPONSES,
    AlgorithmName,
    LossType,
    ScaleRewards,
    unused_key_rules,
    unused_keys,
    uses,
)
from rlhfctl.recipe.sections.algorithm_settings import NLPO_RULES, TRPO_RULES, Nlpo, Trpo
from rlhfctl.recipe.sections.base import DataNeed, Rule, Section, Stage, without
from rlhfctl.recipe.sections.outcome_critic import OutcomeCritic
from rlhfctl.recipe.sections.ppo_details import (
    DETAIL_KEYS,
    DETAIL_RULES,
    CriticLearningRate,
    CriticWarmupSteps,
    EmaDecay,
    KlHorizon,
    KlTarget,
    LamValue,
    NormalizeScores,
    PolicyStartsAfter,
    Ptx,
    ScoreClip,
)
from rlhfctl.recipe.sections.scorers import described_in, unknown_in
from rlhfctl.recipe.sections.server import UNFIT, UNFIT_FIX, unfit
from rlhfctl.recipe.sections.training import LORA_OF_A_STAGE, Lora

SMALLEST_WHITENED_MINIBATCH = 8  # TRL's PPOTrainer asserts it
DEFAULT_RESPONSE_LENGTH = 53

# Keys that TRL's PPOConfig accepts and `ppo` does not: the problem with each, and the fix.
REFUSED_PPO_KEYS = {
    "num_train_epochs": ("PPO's length is counted in episodes", "set ppo.total_episodes"),
    "max_steps": ("PPO's length is counted in episodes", "set ppo.total_episodes"),
    "batch_size": ("TRL derives it", "set ppo.per_device_train_batch_size"),
    "mini_batch_size": ("TRL derives it", "set ppo.num_mini_batches"),
    "sft_model_path": ("the policy is what the sft stage leaves, or else the model section", "set model.path"),
    "reward_model_path": ("the reward model has a section of its own", "set reward.model"),
}
# Keys of rlhfctl's engine only: `engine: trl` refuses them if they are set.
OWN_ENGINE_KEYS = (
    "algorithm", "critic", "critic_from", "critic_trains_trunk", "rewards", "num_generations", "top_k", "top_p",
    "stop_strings", "missing_eos_score", "whiten_advantages", "entropy_coef", "target_kl", "max_grad_norm", "bf16",
    "outcome_critic", "gradient_checkpointing", "checkpoint_steps", "keep_checkpoints", "trace_every", "trace_episodes",
    "sampler", "importance_cap", "checkpointed_share", *DETAIL_KEYS,
)  # fmt: skip
_NEWER_KEYS = (
    "algorithm", "best_kl_limit", "outcome_critic", "sampler", "importance_cap", "checkpointed_share", *DETAIL_KEYS,
)  # fmt: skip
MISSING_EOS_KEYS = ("missing_eos_penalty", "missing_eos_score")
BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")


class PpoEval(Section):
    """Evaluation of the policy during PPO."""

    every: int = Field(10, ge=0, description="Updates between evaluations on the eval prompts (0: none).")


def _set_for_trl(key: str) -> Callable[[Ppo], bool]:
    return lambda ppo: ppo.engine == "trl" and ppo.is_set(key)


def _without_end(key: str) -> Callable[[Ppo], bool]:
    return lambda ppo: getattr(ppo, key) is not None and ppo.stop_token is None and not ppo.stop_strings


def _too_small_to_whiten(ppo: Ppo) -> bool:
    divides = ppo.batch_size % ppo.num_mini_batches == 0
    small = ppo.mini_batch_size < SMALLEST_WHITENED_MINIBATCH
    return divides and ppo.engine == "trl" and ppo.whiten_rewards and small


def _unknown_scorers(ppo: Ppo) -> list[Mapping[str, str]]:
    return [{"scorer": name} for name in unknown_in("ppo.rewards", ppo.rewards or {})]


_TRL_RULES: tuple[Rule[Ppo], ...] = (
    *(
        Rule(
            key,
            "TRL's PPOTrainer has no such option, or ignores it",
            "remove it, or use engine: rlhfctl",
            _set_for_trl(key),
            about=("engine",),
        )
        for key in OWN_ENGINE_KEYS
    ),
    Rule(
        "kl_estimator",
        "TRL's PPOTrainer has k1 and k3",
        "use one of them, or engine: rlhfctl",
        lambda ppo: ppo.engine == "trl" and ppo.kl_estimator == "k2",
        about=("engine",),
    ),
    Rule(
        "stop_token",
        "TRL's PPOTrainer knows eos and null here",
        "use one of them, or engine: rlhfctl",
        lambda ppo: ppo.engine == "trl" and ppo.stop_token not in ("eos", None),
        about=("engine",),
    ),
    Rule(
        "gradient_accumulation_steps",
        "TRL's PPOTrainer takes the wrong number of optimizer steps with gradient accumulation "
        "(measured: 6 where 12 are due)",
        "raise per_device_train_batch_size instead, or use engine: rlhfctl",
        lambda ppo: ppo.engine == "trl" and ppo.gradient_accumulation_steps > 1,
        about=("engine",),
    ),
)


_RULES: tuple[Rule[Ppo], ...] = (
    Rule(
        "num_mini_batches",
        "a batch of {batch_size} does not divide into {num_mini_batches} equal mini-batches",
        "use a divisor of {batch_size}, or change per_device_train_batch_size",
        lambda ppo: ppo.batch_size % ppo.num_mini_batches != 0,
        about=BATCH_KEYS,
    ),
    Rule(
        "num_mini_batches",
        f"whiten_rewards needs mini-batches of at least {SMALLEST_WHITENED_MINIBATCH}, got {{mini_batch_size}}",
        "lower num_mini_batches, raise per_device_train_batch_size, or set whiten_rewards: false",
        _too_small_to_whiten,
        about=(*BATCH_KEYS, "whiten_rewards"),
    ),
    Rule(
        "num_generations",
        "a batch of {batch_size} does not hold {num_generations} responses to each prompt",
        "use a divisor of {batch_size}, or change per_device_train_batch_size",
        lambda ppo: ppo.batch_size % ppo.num_generations != 0,
        about=BATCH_KEYS,
    ),
    Rule(
        "stop_token",
        "{stop_token!r} would be a token",
        "write null for no stop token",
        lambda ppo: ppo.stop_token in ("off", "none", "no"),
    ),
    *(
        Rule(
            key,
            "needs an end token to miss, but stop_token is null",
            "set stop_token: eos, or {key}: null",
            _without_end(key),
            about=("stop_token", "stop_strings"),
        )
        for key in MISSING_EOS_KEYS
    ),
    Rule(
        "missing_eos_score",
        "the score of a response without an end is either lowered or replaced",
        "remove it, or missing_eos_penalty",
        lambda ppo: ppo.missing_eos_penalty is not None and ppo.missing_eos_score is not None,
        about=("missing_eos_penalty",),
    ),
    Rule(
        "num_generations",
        "{algorithm} compares the responses to a prompt with each other, and there is one",
        "set {at}.num_generations to 2 or more, or use {at}.algorithm: reinforce",
        lambda ppo: ppo.algorithm in COMPARES_RESPONSES and ppo.num_generations < 2,
        about=("algorithm",),
    ),
    Rule(
        "outcome_critic",
        "changes the returns of ppo, not of {algorithm}",
        "set {at}.algorithm: ppo, or remove outcome_critic",
        lambda ppo: ppo.outcome_critic is not None and ppo.algorithm != "ppo",
        about=("algorithm",),
    ),
    Rule(
        "critic",
        "an adapter needs LoRA, but all weights are trained",
        "use model, head or reward",
        lambda ppo: ppo.critic == "adapter" and ppo.lora is None,
        about=("lora",),
    ),
    Rule(
        "critic_trains_trunk",
        "is for critic: head, which shares the policy's weights",
        "remove it",
        lambda ppo: not ppo.critic_trains_trunk and ppo.critic_kind not in ("head", None),
        about=("critic",),
    ),
    Rule(
        "checkpointed_share",
        "is for gradient_checkpointing, which is off",
        "set {at}.gradient_checkpointing: true, or remove it",
        lambda ppo: ppo.checkpointed_share < 1 and not ppo.gradient_checkpointing,
        about=("gradient_checkpointing",),
    ),
    Rule(
        "critic_from",
        "a head on the policy reads another policy's states",
        "use critic: adapter or model",
        lambda ppo: ppo.critic_from is not None and ppo.critic_kind == "head",
        about=("critic",),
    ),
    Rule(
        "best_kl_limit",
        "limits the choice of the best policy, but {at}.use is last",
        "set use: best, or remove it",
        lambda ppo: ppo.best_kl_limit is not None and ppo.use == "last",
        about=("use",),
    ),
    Rule(
        "rewards",
        "there is no scorer {scorer!r}",
        f"use {described_in('ppo.rewards')}, module:name, http://..., or a model's folder or id with a slash",
        _unknown_scorers,
    ),
    Rule("rewards", UNFIT, UNFIT_FIX, lambda ppo: any(map(unfit, ppo.rewards or {}))),
)


class Ppo(Stage):
    """Reinforcement learning against the reward, by proximal policy optimization (PPO)."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = (DataNeed("prompts", "to sample responses to"),)

    engine: Literal["rlhfctl", "trl"] = Field("rlhfctl", description="PPO implementation: rlhfctl's, or TRL's.")
    algorithm: AlgorithmName = Field(
        "ppo", description="Algorithm (docs/algorithms.md): ppo; a2c (one optimizer step per update, no clipping); "
        "trpo (a step in a trust region per update); nlpo (ppo on the likely tokens of an older policy); or "
        "without a critic reinforce (over the mean of earlier rewards), rloo and grpo (over the other responses)."
    )  # fmt: skip
    lora: Lora | None = Field(None, description=LORA_OF_A_STAGE)
    critic: Literal["adapter", "head", "reward", "model"] | None = Field(
        None, description="The critic: an adapter on base*, a head on the policy, a head on the frozen reward model, "
        "or a model of its own (null: adapter with rlhfctl's engine and LoRA, else model)."
    )  # fmt: skip
    critic_from: str | None = Field(
        None, min_length=1, description="A trained critic to start from: a run's ppo stage, or its critic folder."
    )
    critic_trains_trunk: bool = Field(
        True, description="With critic: head, whether the critic's gradients reach the policy's weights."
    )
    rewards: dict[str, float] | None = Field(
        None, min_length=1, description="Weighted sum of scorers: {reward: 1.0, module:name: 0.5, http://...: 0.5, "
        "org/reward-model: 1.0, rougeL: 2.0} (null: the reward)."
    )  # fmt: skip
    total_episodes: int = Field(2560, gt=0, description="Total number of responses that are sampled and trained on.")
    per_device_train_batch_size: int = Field(64, gt=0, description="Responses in memory at once in an update.")
    gradient_accumulation_steps: int = Field(
        1, gt=0, description="Gradient accumulation: an update's batch is this many times per_device_train_batch_size."
    )
    num_mini_batches: int = Field(1, gt=0, description="Number of optimizer steps per pass over an update's batch.")
    num_ppo_epochs: int = Field(4, gt=0, description="Number of passes over each batch (PPO epochs).")
    scale_rewards: ScaleRewards = Field(
        "group", description="With algorithm grpo, the standard deviation by which advantages are divided: of the "
        "responses to a prompt (group), of the batch, or none."
    )  # fmt: skip
    loss_type: LossType = Field(
        "grpo", description="With algorithm grpo, how the loss adds up tokens: the mean over each response, then over "
        "responses (grpo), over all tokens (dapo), or the sum over responses x response_length (dr_grpo)."
    )  # fmt: skip
    num_generations: int = Field(1, gt=0, description="Number of responses to each prompt of a batch.")
    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Learning rate schedule."
    )
    warmup_steps: int = Field(0, ge=0, description="Number of updates over which the learning rate rises from 0.")
    critic_learning_rate: CriticLearningRate = None
    critic_warmup_steps: CriticWarmupSteps = None
    policy_starts_after: PolicyStartsAfter = 0
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Maximum gradient norm (null: no clipping).")
    bf16: bool = Field(False, description="Whether to compute in bfloat16 over float32 weights (autocast).")
    gradient_checkpointing: bool = Field(
        False, description="Whether to save memory by computing activations again in the backward pass."
    )
    checkpointed_share: float = Field(
        1.0, gt=0, le=1, description="With gradient_checkpointing, share of the layers whose activations are computed "
        "again, the first ones (less: faster, and more memory)."
    )  # fmt: skip
    response_length: int = Field(DEFAULT_RESPONSE_LENGTH, gt=0, description="Maximum response length in tokens.")
    temperature: float = Field(0.7, gt=0, description="Sampling temperature.")
    top_k: int = Field(0, ge=0, description="Sample from the k most likely tokens only (0: from all).")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the most likely tokens that make up this probability (nucleus)."
    )
    stop_token: str | None = Field(
        "eos", min_length=1, description="Token that ends a response: eos, or a token as text (null: no token does)."
    )
    stop_strings: list[str] = Field([], description="Texts that end a response, beside the stop token.")
    missing_eos_penalty: float | None = Field(
        None, gt=0, description="Penalty taken from the score of a response that does not end by itself (null: none)."
    )
    missing_eos_score: float | None = Field(
        None, description="Fixed score of a response that does not end by itself (null: its own score)."
    )
    kl_coef: float = Field(0.05, ge=0, description="Coefficient of the KL penalty against the reference model.")
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = Field(
        "k1", description="KL of a token: k1 the log-ratio, k2 half its square, k3 never negative, or exact, the sum "
        "over the vocabulary."
    )  # fmt: skip
    kl_target: KlTarget = None
    kl_horizon: KlHorizon = 10_000
    normalize_scores: NormalizeScores = None
    score_clip: ScoreClip = None
    whiten_rewards: bool = Field(False, description="Whether to scale per-token rewards to unit variance.")
    whiten_advantages: bool = Field(True, description="Whether to scale advantages to mean 0 and unit variance.")
    cliprange: float = Field(0.2, gt=0, description="Clip range of the policy's probability ratio around 1.")
    importance_cap: float | None = Field(
        None, ge=1, description="Where sampling rounds differently than learning: weigh each token by the ratio of the "
        "two probabilities, at most this (null: no weights)."
    )  # fmt: skip
    vf_coef: float = Field(0.1, ge=0, description="Coefficient of the critic's (value) loss.")
    entropy_coef: float = Field(0.0, ge=0, description="Coefficient of the policy's entropy bonus.")
    cliprange_value: float = Field(0.2, gt=0, description="Clip range of the change of a value in an update.")
    target_kl: float | None = Field(
        None, gt=0, description="KL in nats per token at which the PPO epochs of an update stop early (null: never)."
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount factor of later rewards.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalized advantage estimation (GAE).")
    lam_value: LamValue = None
    ptx: Ptx | None = Field(None, description="Next-token loss on other text in each step of the policy (PPO-ptx).")
    ema_decay: EmaDecay = None
    local_rollout_forward_batch_size: int = Field(
        64, gt=0, description="Batch size for sampling and scoring responses."
    )
    sampler: Literal["batch", "slots"] = Field(
        "batch", description="How responses are sampled: batch (one batch after the other) or slots (a response that "
        "ends makes room for the next, at fixed shapes, as CUDA graphs on a GPU)."
    )  # fmt: skip
    checkpoint_steps: int | None = Field(
        None, gt=0, description="Updates between checkpoints (null: about ten checkpoints per run)."
    )
    keep_checkpoints: int = Field(2, gt=0, description="Number of checkpoints to keep, the newest ones.")
    trace_every: int = Field(10, ge=0, description="Updates between token-by-token traces in ppo/traces (0: none).")
    trace_episodes: int = Field(4, gt=0, description="Number of episodes in each trace.")
    use: Literal["last", "best"] = Field(
        "last",
        description="Policy for later stages: the last one, or the best one on the eval prompts, by the held-out "
        "reward where reward.heldout gives one, else by score - kl_coef x KL.",
    )
    best_kl_limit: float | None = Field(
        None, gt=0, description="With use: best, largest KL in nats per response of a policy that may be chosen (null: "
        "any)."
    )  # fmt: skip
    outcome_critic: OutcomeCritic | None = Field(
        None,
        description="With reward.unit_tests: returns as in CodeRL, the score over that of the greedy program, weighed "
        "at each token by a model that predicts the outcome (null: the critic's advantages).",
    )
    trpo: Trpo = Field(Trpo(), description="With algorithm: trpo, its trust region and the search for a step in it.")
    nlpo: Nlpo = Field(Nlpo(), description="With algorithm: nlpo, the older policy that says which tokens are likely.")
    eval: PpoEval = Field(PpoEval(every=10), description="Evaluation of the policy during PPO.")

    @property
    def batch_size(self) -> int:
        """Number of responses sampled per update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def recomputed_share(self) -> float:
        """Share of the layers whose activations are computed again in the backward pass."""
        return self.checkpointed_share if self.gradient_checkpointing else 0.0

    @property
    def trains_by(self) -> str:
        """The name, in the table of training/rl/algorithms.py, of what the keys amount to."""
        return self.algorithm if self.outcome_critic is None else BY_OUTCOMES

    @property
    def passes(self) -> int:
        """Number of passes over each batch: num_ppo_epochs, or 1 with an algorithm that has no such key."""
        return self.num_ppo_epochs if uses(self.trains_by, "num_ppo_epochs") else 1

    @property
    def updates(self) -> int:
        """Number of updates of the whole stage."""
        return math.ceil(self.total_episodes / self.batch_size)

    @property
    def mini_batch_size(self) -> int:
        """Number of responses per optimizer step."""
        return self.batch_size // self.num_mini_batches

    @property
    def prompts_per_batch(self) -> int:
        """Number of prompts per update."""
        return self.batch_size // self.num_generations

    @property
    def critic_kind(self) -> Literal["adapter", "head", "reward", "model"] | None:
        """The kind of critic, with the default filled in; None: the algorithm has no critic."""
        if not uses(self.trains_by, "critic"):
            return None
        if self.critic is not None:
            return self.critic
        return "model" if self.engine == "trl" or self.lora is None else "adapter"

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Keys that older runs do not know: left out unless they are set, so that those runs stay unchanged.
        newer = tuple(key for key in _NEWER_KEYS if getattr(self, key) == type(self).model_fields[key].default)
        newer += unused_keys(self.trains_by)
        return without(handler(self), (*newer, *(OWN_ENGINE_KEYS if self.engine == "trl" else ())))

    RULES: ClassVar[tuple[Rule[Ppo], ...]] = (
        *_TRL_RULES, *unused_key_rules(), *TRPO_RULES, *NLPO_RULES, *_RULES, *DETAIL_RULES
    )  # fmt: skip
