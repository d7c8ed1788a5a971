"""Translate the arguments of TRL's scripts: sft.py, reward_modeling.py and ppo.py, and of PPOConfig before 0.12.

Fields are those of SFTConfig, RewardConfig, PPOConfig, ScriptArguments and ModelConfig of TRL 1.12, with the defaults
that differ from rlhfctl's. The older PPOConfig (TRL 0.4 to 0.11) is known by its own names.
"""

from __future__ import annotations

from typing import Any

from rlhfctl.importing import common, trl_groups
from rlhfctl.importing.findings import Fields, Stage

DATA: dict[Stage, str] = {"sft": "demonstrations", "reward": "preferences", "ppo": "prompts"}
_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
}
_PPO_CARRIED = {
    name: f"ppo.{name}"
    for name in (
        "learning_rate", "weight_decay", "num_mini_batches", "num_ppo_epochs", "total_episodes", "response_length",
        "temperature", "missing_eos_penalty", "whiten_rewards", "kl_coef", "kl_estimator", "cliprange", "vf_coef",
        "cliprange_value", "gamma", "lam", "local_rollout_forward_batch_size", "per_device_train_batch_size",
    )
}  # fmt: skip
_DERIVED = "PPOConfig derives it from the other sizes"
_PPO_DROPPED = {
    **dict.fromkeys(
        ("world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "local_mini_batch_size",
         "batch_size", "mini_batch_size"),
        _DERIVED,
    ),
    "stop_token_id": "write the token as text: ppo.stop_token",
    "num_sample_generations": "each evaluation shows a sample: ppo.eval.every",
    "ds3_gather_for_generation": "launch starts processes and divides weights",
    "model_adapter_name": "the policy's adapter needs no name",
    "ref_adapter_name": "the reference is the policy without its adapter",
    "max_length": "prompts are bounded by data.max_prompt_length, responses by ppo.response_length",
    "dataset_num_proc": "prompts are tokenized in one process",
    **{
        name: f"ppo has one optimizer, AdamW with transformers' constants: {name} cannot be set"
        for name in ("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs")
    },
    "max_steps": "PPO's length is counted in episodes: ppo.total_episodes",
    "fp16": "use ppo.bf16, or model.dtype",
}  # fmt: skip
_ENGINE = "TRL's PPOTrainer ignores it; rlhfctl's engine does it"
_OLD = ("init_kl_coef", "ppo_epochs", "steps", "adap_kl_ctrl", "query_dataset", "model_name")
_OLD_CARRIED = {
    "steps": "ppo.total_episodes", "learning_rate": "ppo.learning_rate", "ppo_epochs": "ppo.num_ppo_epochs",
    "gamma": "ppo.gamma", "lam": "ppo.lam", "cliprange": "ppo.cliprange", "cliprange_value": "ppo.cliprange_value",
    "vf_coef": "ppo.vf_coef", "whiten_rewards": "ppo.whiten_rewards", "max_grad_norm": "ppo.max_grad_norm",
}  # fmt: skip
_OLD_DEFAULTS: dict[str, Any] = {
    "steps": 20000, "learning_rate": 1.41e-5, "ppo_epochs": 4, "max_grad_norm": None,
}  # fmt: skip
_OLD_DROPPED = {
    "exp_name": "the run's name is `name`",
    "task_name": "the run's name is `name`",
    "log_with": "use `report_to`",
    "tracker_project_name": "the run's name is `name`",
    "remove_unused_columns": "every column stays, for reward functions",
    "ratio_threshold": "no batch is skipped: the clip range bounds each ratio",
    "use_score_scaling": "off",
    "use_score_norm": "use_score_scaling is off, without which it does nothing",
    "compare_steps": "nothing to set",
    "optimize_cuda_cache": "rlhfctl sets this itself",
    "optimize_device_cache": "rlhfctl sets this itself",
    "forward_batch_size": "use ppo.local_rollout_forward_batch_size",
    "is_encoder_decoder": "rlhfctl trains decoders",
    "use_seq2seq": "rlhfctl trains decoders",
    "is_peft_model": "adapters are the section lora",
    "accelerator_kwargs": "launch starts processes and divides weights",
    "tracker_kwargs": "use `report_to`",
    "project_kwargs": "use `report_to`",
    "push_to_hub_if_best_kwargs": "use `rlhfctl export`",
    "kl_penalty": "ppo.kl_estimator has other names: kl is k1, mse is k2",
    "world_size": _DERIVED,
    "backward_batch_size": _DERIVED,
    "global_backward_batch_size": _DERIVED,
    "global_batch_size": _DERIVED,
}


def translate(fields: Fields) -> None:
    """Write one job of TRL into the recipe."""
    stage = fields.job.stage
    fields.draft.open(stage)
    if fields.job.algorithm:
        trl_groups.translate(fields, fields.job.algorithm)
        need_reward(fields)
    elif stage == "ppo" and any(name in fields for name in _OLD):
        _old_ppo(fields)
    elif stage == "ppo":
        _ppo(fields)
    else:
        common.model_of(fields, "model_name_or_path", stage)
        common.trained_options(fields, stage)
        if stage == "sft" and "dataset_text_field" in fields and fields.get("dataset_text_field") != "text":
            fields.carry("dataset_text_field", "data.demonstrations.columns.text")
        fields.same("dataset_text_field", "the column `text` is read as it is")
        fields.default(
            "gradient_checkpointing", f"{stage}.trainer.gradient_checkpointing", True, "rlhfctl's default is false"
        )
    _model(fields, stage)
    _data(fields, stage)
    if output := fields.get("output_dir"):
        fields.draft.outputs[output] = stage
        fields.draft.recipe["name"] = common.named_after(output)
    fields.changed("output_dir", "the run's folder is runs/NAME, or --run-dir", "name", fields.draft.recipe.get("name"))
    fields.finish(common.reason)


def _model(fields: Fields, stage: Stage) -> None:
    dtype = fields.get("dtype", fields.get("torch_dtype"))
    for name in ("dtype", "torch_dtype"):
        if dtype in ("float32", "bfloat16", "float16"):
            fields.carry(name, "model.dtype")
        fields.drop(name, "model.dtype knows float32 (the default), bfloat16 and float16")
    if fields.get("attn_implementation") in ("eager", "sdpa", "flash_attention_2"):
        fields.carry("attn_implementation", "model.attn_implementation")
    fields.drop("attn_implementation", "model.attn_implementation knows eager, sdpa and flash_attention_2")
    if fields.get("model_revision", "main") != "main":
        fields.carry("model_revision", "model.revision")
    fields.same("model_revision", "the default branch")
    fields.carry("trust_remote_code", "model.trust_remote_code")
    for name, bits in (("load_in_4bit", "4bit"), ("load_in_8bit", "8bit")):
        if fields.on(name):
            fields.carry(name, "model.quantization", bits)
        fields.same(name, "off")
    for name in ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage", "bnb_4bit_compute_dtype"):
        fields.drop(name, "4 bits are nf4 with double quantization, always")
    if fields.on("use_peft"):
        fields.same("use_peft", "adapters are the section lora")
        modules = fields.get("lora_target_modules", "all-linear")
        section = {
            "r": fields.get("lora_r", 16),
            "lora_alpha": fields.get("lora_alpha", 16),
            "lora_dropout": float(fields.get("lora_dropout", 0.05)),
            "target_modules": modules,
        }
        common.carry_lora(fields, stage, _LORA, section)
    fields.same("use_peft", "off: all weights are trained")
    for name in _LORA.values():
        fields.drop(name, "use_peft is off")
    fields.drop("lora_task_type", "each stage knows its own")
    for name in ("use_rslora", "use_dora", "lora_modules_to_save", "lora_target_parameters"):
        fields.drop(name, "the section lora has no such option")


def _data(fields: Fields, stage: Stage) -> None:
    at = f"data.{DATA[stage]}"
    if "dataset_name" in fields:
        kept = "100 prompts of it are kept for compare (data.prompts.test), and not trained on"
        fields.carry("dataset_name", f"{at}.source", words=kept if stage == "ppo" else "")
    elif not fields.draft.has(f"{at}.source"):
        fields.draft.set(f"{at}.source", f"your-{DATA[stage]}")
        fields.settle(f"{at}.source", "the command names no data set: write a file, a folder or an id on the Hub")
    fields.carry("dataset_config", f"{at}.subset")
    fields.carry("dataset_train_split", f"{at}.split")
    if stage == "ppo" and "dataset_test_split" in fields:
        source = fields.get("dataset_name", "your-prompts")
        here = {"source": source, "split": fields.get("dataset_test_split")}
        fields.carry("dataset_test_split", f"{at}.eval_source", here, "prompts of PPO's evaluations; 64 of them")
        fields.draft.set(f"{at}.eval", 64)
    fields.drop("dataset_test_split", "sft and reward need no second split: data.preferences.heldout keeps pairs apart")


def _ppo(fields: Fields) -> None:
    """The PPOConfig of TRL 0.12 and later, and the paths of examples/scripts/ppo/ppo.py."""
    draft = fields.draft
    common.model_of(fields, "sft_model_path", "ppo")
    if not fields.get("sft_model_path"):
        common.model_of(fields, "model_name_or_path", "ppo")
    fields.changed("model_name_or_path", "the tokenizer is the policy's")
    common.link_reward(fields, "reward_model_path")
    need_reward(fields)
    if "total_episodes" in fields:
        fields.drop("num_train_epochs", "total_episodes counts more, there too")
    elif "max_steps" not in fields:
        fields.settle("ppo.total_episodes", "TRL takes num_train_epochs (3) x the number of prompts: set that number")
    fields.drop("num_train_epochs", "PPO's length is counted in episodes: set ppo.total_episodes")
    fields.default("per_device_train_batch_size", "ppo.per_device_train_batch_size", 8)
    fields.carry(
        "gradient_accumulation_steps", "ppo.gradient_accumulation_steps",
        words="rlhfctl's engine takes num_mini_batches steps a pass; TRL's takes others with accumulation",
    )  # fmt: skip
    fields.table(_PPO_CARRIED, {})
    common.schedule(fields, "lr_scheduler_type")
    if isinstance(fields.get("warmup_steps"), int):
        fields.carry("warmup_steps", "ppo.warmup_steps", words="counted in updates")
    fields.drop("warmup_steps", "a number of updates is needed: ppo.warmup_steps")
    common.warmup_updates(fields, "warmup_ratio", None)
    fields.carry("bf16", "ppo.bf16", words=_ENGINE)
    fields.carry("gradient_checkpointing", "ppo.gradient_checkpointing", words=_ENGINE)
    fields.carry("max_grad_norm", "ppo.max_grad_norm", words=_ENGINE)
    fields.default("max_grad_norm", "ppo.max_grad_norm", None, "TRL's PPOTrainer clips no gradients")
    if "stop_token" in fields:
        fields.carry("stop_token", "ppo.stop_token")
    elif draft.get("ppo.missing_eos_penalty") is not None:
        fields.changed("stop_token", "null")
        draft.set("ppo.stop_token", "eos")
        fields.settle(
            "ppo.stop_token",
            "TRL would sample on after the end token and take the penalty where there is none; here the response ends",
        )
    else:
        fields.changed("stop_token", "every response has response_length tokens", "ppo.stop_token", None)
        fields.default("stop_token", "ppo.stop_token", None, "every response has response_length tokens")
        draft.set("ppo.stop_token", None)
    if isinstance(fields.get("eval_steps"), int):
        fields.carry("eval_steps", "ppo.eval.every", words="counted in updates")
    common.carry_checkpoints(fields, "ppo")
    fields.table({}, _PPO_DROPPED)


def need_reward(fields: Fields) -> None:
    """Note that the reward is missing, with a name to replace, unless the recipe has one."""
    if "reward" not in fields.draft.recipe and fields.draft.get("ppo.rewards") is None:
        fields.draft.set("reward.model", "your-reward-model")
        fields.settle("reward.model", "the job names no reward: a model, a function (reward.function) or a trained one")


def _old_ppo(fields: Fields) -> None:
    """The PPOConfig of TRL 0.4 to 0.11."""
    draft = fields.draft
    name = "model_name" if "model_name" in fields else "model_name_or_path"
    common.model_of(fields, name, "ppo")
    _old_reward(fields)
    need_reward(fields)
    if "query_dataset" in fields:
        fields.carry("query_dataset", "data.prompts.source", words="100 prompts of it are kept for compare")
    batch, mini = fields.get("batch_size", 128), fields.get("mini_batch_size", 128)
    accumulated = fields.get("gradient_accumulation_steps", 1)
    fields.carry("batch_size", "ppo.per_device_train_batch_size", words="responses an update, in one process")
    fields.default("batch_size", "ppo.per_device_train_batch_size", 128)
    steps = max(1, batch // (mini * accumulated))
    fields.carry(
        "mini_batch_size", "ppo.num_mini_batches", steps,
        f"a number of optimizer steps: {batch} / ({mini} x {accumulated} accumulated)",
    )  # fmt: skip
    fields.changed("gradient_accumulation_steps", "in ppo.num_mini_batches", "ppo.num_mini_batches", steps)
    fields.table(_OLD_CARRIED, {})
    for key, value in _OLD_DEFAULTS.items():
        fields.default(key, _OLD_CARRIED[key], value)
    adaptive = fields.get("adap_kl_ctrl", True)
    fields.carry("init_kl_coef", "ppo.kl_coef")
    fields.default("init_kl_coef", "ppo.kl_coef", 0.2)
    if adaptive:
        adaptive_kl(fields, "target", "horizon")
    fields.same("adap_kl_ctrl", "ppo.kl_target moves the coefficient" if adaptive else "off: the coefficient is fixed")
    for one in ("target", "horizon"):
        fields.drop(one, "adap_kl_ctrl is off: the coefficient is fixed")
    if fields.on("use_score_scaling"):
        normalized_scores(fields, "use_score_scaling", centred=fields.on("use_score_norm"))
        fields.changed("use_score_norm", "in ppo.normalize_scores", "ppo.normalize_scores")
    fields.carry("score_clip", "ppo.score_clip")
    estimator = {"kl": "k1", "mse": "k2"}.get(str(fields.get("kl_penalty")))
    if estimator:
        fields.carry("kl_penalty", "ppo.kl_estimator", estimator)
    if fields.on("early_stopping"):
        fields.carry("target_kl", "ppo.target_kl", words="nats per token; TRL stops at 1.5 times it")
    fields.drop("target_kl", "early_stopping is off")
    fields.same("early_stopping", "ppo.target_kl alone decides")
    common.carry_checkpoints(fields, "ppo")
    draft.set("ppo.response_length", 32)
    draft.set("ppo.temperature", 1.0)
    fields.settle("ppo.response_length", "the script's generation_kwargs are code: set response_length and temperature")
    fields.table({}, _OLD_DROPPED)


def adaptive_kl(fields: Fields, target: str, horizon: str) -> None:
    """Carry the adaptive KL coefficient of TRL up to 0.11 over; its defaults are 6 nats and 10,000 responses."""
    fields.carry(target, "ppo.kl_target")
    fields.default(target, "ppo.kl_target", 6.0)
    fields.carry(horizon, "ppo.kl_horizon")


def normalized_scores(fields: Fields, name: str, *, centred: bool) -> None:
    """Carry the running normalization of scores over."""
    fields.carry(name, "ppo.normalize_scores", "running" if centred else "running_std")


def _old_reward(fields: Fields) -> None:
    """A reward model as a pipeline, `sentiment-analysis:lvwerra/distilbert-imdb`, or as a model."""
    given = str(fields.get("reward_model", ""))
    task, _, model = given.rpartition(":")
    if task:
        fields.carry(
            "reward_model", "reward.model", model,
            "the label's log-odds over prompt and response; the script's own code picks a logit of the pipeline",
        )  # fmt: skip
        fields.draft.set("reward.label", 1)
        fields.settle("reward.label", "the label whose log-odds are the score: name or index")
    else:
        common.link_reward(fields, "reward_model")
