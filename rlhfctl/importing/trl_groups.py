"""Translate TRL's GRPOConfig and RLOOConfig (version 1.12), which compare several responses to each prompt."""

from __future__ import annotations

from typing import Any, get_args

from rlhfctl.importing import common
from rlhfctl.importing.findings import Fields
from rlhfctl.recipe.sections.algorithm import LossType

_CARRIED = {
    **{
        name: f"ppo.{name}"
        for name in (
            "learning_rate", "weight_decay", "temperature", "top_p", "top_k", "num_generations", "entropy_coef",
            "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "max_grad_norm",
            "gradient_checkpointing",
        )
    },
    "max_completion_length": "ppo.response_length",
    "beta": "ppo.kl_coef",
    "max_prompt_length": "data.max_prompt_length",
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6, "per_device_train_batch_size": 8, "max_completion_length": 512, "temperature": 1.0,
}  # fmt: skip
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "grpo": {"num_generations": 8, "beta": 0.0},
    "rloo": {"num_generations": 2, "beta": 0.05},
}
_VLLM = "responses are sampled by the policy itself, without vLLM"
_DROPPED = {
    "reward_weights": "weights of several rewards are those of ppo.rewards",
    "steps_per_generation": "an update samples what its optimizer steps learn from; see ppo.num_mini_batches",
    "generation_batch_size": "an update samples what its optimizer steps learn from; see ppo.num_mini_batches",
    "epsilon_high": "one clip range for both sides: ppo.cliprange",
    "delta": "one clip range for both sides: ppo.cliprange",
    "importance_sampling_level": "the ratio is that of each token",
    "use_bias_correction_kl": "the KL in the loss is that of the paper, without the ratio",
    "mask_truncated_completions": "use ppo.missing_eos_penalty or ppo.missing_eos_score",
    "sync_ref_model": "the reference stays base*",
    "ref_model_mixup_alpha": "the reference stays base*",
    "ref_model_sync_steps": "the reference stays base*",
    "normalize_advantages": "advantages of rloo are not whitened",
    "reward_clip_range": "scores are not clipped",
    "log_completions": "each evaluation shows a sample: ppo.eval.every",
    "num_completions_to_print": "each evaluation shows a sample: ppo.eval.every",
    "shuffle_dataset": "prompts are shuffled",
    "ds3_gather_for_generation": "rlhfctl trains without DeepSpeed",
}


def translate(fields: Fields, algorithm: str) -> None:
    """Write the options of GRPOConfig or RLOOConfig into the section ppo."""
    draft = fields.draft
    draft.set("ppo.algorithm", algorithm)
    common.model_of(fields, "model_name_or_path", "ppo")
    common.link_reward(fields, "reward_model_name_or_path")
    _reward_functions(fields)
    fields.table(_CARRIED, {})
    for name, value in (_DEFAULTS | _OWN_DEFAULTS[algorithm]).items():
        fields.default(name, _CARRIED[name], value)
    if algorithm == "grpo":
        _grpo(fields)
    for name in ("epsilon", "num_iterations"):
        fields.drop(name, "rloo takes one optimizer step per update, without a clip")
    common.schedule(fields, "lr_scheduler_type")
    if isinstance(fields.get("warmup_steps"), int):
        fields.carry("warmup_steps", "ppo.warmup_steps", words="counted in updates")
    fields.drop("warmup_steps", "a number of updates is needed: ppo.warmup_steps")
    common.warmup_updates(fields, "warmup_ratio", None)
    for name in ("num_train_epochs", "max_steps"):
        fields.drop(name, "the length is counted in responses: ppo.total_episodes")
    fields.settle("ppo.total_episodes", "the number of responses: passes x prompts x num_generations")
    if isinstance(fields.get("eval_steps"), int):
        fields.carry("eval_steps", "ppo.eval.every", words="counted in updates")
    common.carry_checkpoints(fields, "ppo")
    for name in [one for one in fields.job.fields if one.startswith("vllm_") or one == "use_vllm"]:
        fields.drop(name, _VLLM)
    fields.table({}, _DROPPED)


def _grpo(fields: Fields) -> None:
    fields.carry("epsilon", "ppo.cliprange")
    fields.carry("num_iterations", "ppo.num_ppo_epochs")
    fields.default("num_iterations", "ppo.num_ppo_epochs", 1)
    scale = {True: "group", False: "none"}.get(fields.get("scale_rewards"), fields.get("scale_rewards"))
    fields.carry("scale_rewards", "ppo.scale_rewards", scale)
    loss = fields.get("loss_type", "dapo")
    if loss == "bnpo":
        fields.carry("loss_type", "ppo.loss_type", "dapo", "the mean over all tokens of the minibatch")
    elif loss in get_args(LossType):
        fields.carry("loss_type", "ppo.loss_type")
    fields.drop("loss_type", f"ppo.loss_type has {', '.join(get_args(LossType))}")
    fields.default("loss_type", "ppo.loss_type", "dapo")


def _reward_functions(fields: Fields) -> None:
    """Note the functions that TRL's scripts name as rewards: rlhfctl reads its own from a file."""
    if fields.get("reward_funcs") is not None:
        fields.drop("reward_funcs", "name a function of yours: reward.function: file:name, or several in ppo.rewards")
