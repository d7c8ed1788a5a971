"""Translate what TRL and LLaMA-Factory share: options of transformers' trainers, adapters, number formats, the model.

The tables list names alone, so that nothing heavy is imported; a test holds them to the installed TRL.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlhfctl.importing.findings import Fields, Stage
from rlhfctl.recipe.sections.training import owned_trainer_key

TRAINER_OPTIONS = (
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "tf32",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "use_liger_kernel",
    "neftune_noise_alpha", "torch_empty_cache_steps", "logging_steps", "dataloader_drop_last",
    "dataloader_num_workers", "dataloader_prefetch_factor", "dataset_num_proc", "max_length", "activation_offloading",
    "pad_to_multiple_of",
)  # fmt: skip
"""Options of both SFTConfig and RewardConfig that go under `trainer:` as they are."""
SFT_OPTIONS = (
    "packing", "packing_strategy", "padding_free", "eval_packing", "completion_only_loss", "assistant_only_loss",
    "loss_type", "truncation_mode",
)  # fmt: skip
REWARD_OPTIONS = ("center_rewards_coefficient", "disable_dropout")

_GENERIC = ("sft", "rm", "reward", "ppo", "lora", "full", "output", "outputs", "checkpoint", "final")
"""Names of folders that say too little to be a run's name."""
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")  # of ppo.lr_scheduler_type
TRACKERS = ("tensorboard", "wandb", "trackio")
NO_EVAL = "held-out demonstrations are measured after each epoch, held-out pairs once; PPO's schedule is ppo.eval.every"
NOT_FOR_RESULTS = {
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "overwrite_output_dir", "local_rank"), "nothing to set"),
    **dict.fromkeys(
        ("logging_steps", "logging_strategy", "logging_first_step", "log_level", "log_level_replica",
         "logging_nan_inf_filter", "plot_loss", "log_on_each_node"),
        "the screen, the log and the report show every step",
    ),
    **dict.fromkeys(("run_name", "project", "wandb_project"), "the run's name is `name`"),
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "eval_steps", "eval_delay", "eval_on_start",
         "per_device_eval_batch_size", "eval_accumulation_steps", "metric_for_best_model", "greater_is_better"),
        NO_EVAL,
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "ddp_timeout", "ddp_find_unused_parameters", "ddp_backend",
         "accelerator_config", "parallelism_config"),
        "launch starts processes and divides weights",
    ),
    **dict.fromkeys(
        ("remove_unused_columns", "dataloader_pin_memory", "group_by_length", "save_safetensors", "full_determinism",
         "overwrite_cache", "preprocessing_num_workers", "include_num_input_tokens_seen", "dataset_streaming",
         "streaming", "ignore_bias_buffers", "save_on_each_node"),
        "rlhfctl sets this itself",
    ),
}  # fmt: skip
"""Fields without a counterpart that change no result of a training on one machine, each with the reason."""


def reason(name: str) -> str | None:
    """Say why a field of transformers' arguments is left out, where that is known."""
    owned = owned_trainer_key(name)
    return f"rlhfctl sets this itself: {owned}" if owned is not None else NOT_FOR_RESULTS.get(name)


def trained_options(fields: Fields, stage: Stage) -> None:
    """Carry the options of an sft or reward training over, under `trainer:`."""
    fields.carry("max_seq_length", f"{stage}.trainer.max_length")  # the older name
    warmup = fields.get("warmup_ratio")
    if warmup and not fields.get("warmup_steps"):  # transformers 5 reads a fraction as the share of all steps
        fields.carry("warmup_ratio", f"{stage}.trainer.warmup_steps", float(warmup))
    fields.drop("warmup_ratio", "0, or warmup_steps counts more")
    fields.trainer(stage, (*TRAINER_OPTIONS, *(SFT_OPTIONS if stage == "sft" else REWARD_OPTIONS)))
    carry_checkpoints(fields, stage)


def carry_checkpoints(fields: Fields, stage: Stage) -> None:
    """Carry how often checkpoints are written, and the trackers."""
    steps = fields.get("save_steps")
    if isinstance(steps, int) and steps > 0:
        unit = "counted in updates" if stage == "ppo" else ""
        fields.carry("save_steps", f"{stage}.checkpoint_steps", words=unit)
    fields.drop("save_steps", "the default: about ten checkpoints")
    named = fields.get("report_to")
    listed = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if known := [one for one in listed if one in TRACKERS]:
        fields.carry("report_to", "report_to", known, "" if known == listed else "only what rlhfctl knows")
    fields.drop("report_to", "metrics are in events.jsonl in any case; `report_to` knows " + ", ".join(TRACKERS))
    fields.carry("seed", "seed")


def carry_lora(fields: Fields, stage: Stage, names: dict[str, str], section: dict[str, Any]) -> None:
    """Write the adapters of a stage. `names`: key of the lora section -> the tool's field; `section`: its values."""
    for key, name in names.items():
        if name in fields.job.fields:
            fields.carry(name, f"{stage}.lora.{key}", section[key])
        else:
            fields.default(name, f"{stage}.lora.{key}", section[key])


def warmup_updates(fields: Fields, name: str, updates: int | None) -> None:
    """Carry PPO's share of warm-up steps over as a number of updates."""
    ratio = float(fields.get(name, 0))
    if ratio and updates:
        fields.carry(name, "ppo.warmup_steps", math.ceil(ratio * updates), "a number of updates")
    fields.drop(name, "set ppo.warmup_steps, a number of updates, once ppo.total_episodes is known" if ratio else "0")


def schedule(fields: Fields, name: str) -> None:
    """Carry PPO's learning rate schedule over, where rlhfctl has it."""
    given = str(fields.get(name, ""))
    if given in SCHEDULES:
        fields.carry(name, "ppo.lr_scheduler_type")
    elif given.startswith("cosine"):
        fields.carry(name, "ppo.lr_scheduler_type", "cosine", "to 0, in one period")
    fields.drop(name, f"ppo.lr_scheduler_type knows {', '.join(SCHEDULES)}")


def named_after(folder: str) -> str:
    """Make a recipe's name of an output folder."""
    parts = Path(folder).parts
    last = parts[-3:] if parts and parts[-1] in _GENERIC else parts[-1:]
    name = "-".join(
        "".join(one if (one.isascii() and one.isalnum()) or one in "._-" else "-" for one in part) for part in last
    )
    return name.lstrip("._-") or "imported"


def model_of(fields: Fields, name: str, stage: Stage) -> None:
    """Write where the policy's weights come from: the model section, or an earlier stage of this recipe."""
    path, draft = fields.get(name), fields.draft
    if path in draft.outputs:
        made = draft.outputs[path]
        fields.same(name, f"what the {made} stage leaves: later stages begin there by themselves")
    elif draft.has("model.path") and draft.get("model.path") != path and stage != "sft":
        begins = "the result of sft" if "sft" in draft.recipe else f"model.path ({draft.get('model.path')})"
        fields.changed(name, f"here the {stage} stage begins at {begins}, with the one tokenizer of the recipe")
    elif path is not None:
        fields.carry(name, "model.path")


def link_reward(fields: Fields, name: str) -> None:
    """Write the reward model of PPO: the reward stage of this recipe, or a ready model."""
    path, draft = fields.get(name), fields.draft
    if path is None:
        return
    if draft.outputs.get(path) == "reward":
        fields.same(name, "the reward model that the reward stage trains")
    elif "reward" in draft.recipe and draft.get("reward.model") is None and draft.get("reward.function") is None:
        fields.changed(name, "PPO takes the reward model that this recipe's reward stage trains")
    else:
        fields.carry(name, "reward.model")
