"""Translate OpenRLHF's command lines: train_sft, train_rm and train_ppo_ray.

Batch sizes there are those of all processes together, and PPO's are counted in prompts (rollout) and samples (train).
Defaults that differ from rlhfctl's are those of openrlhf/cli (version 0.9). Options of Ray, vLLM and DeepSpeed have no
counterpart: `launch` asks for processes and divided weights.
"""

from __future__ import annotations

from typing import Any

from rlhfctl.importing import common
from rlhfctl.importing.estimators import algorithm_of, kl_loss
from rlhfctl.importing.findings import Fields, Stage
from rlhfctl.importing.trl import DATA, need_reward
from rlhfctl.recipe.sections.algorithm import unused_keys

_ONE_PROCESS = "launch starts processes, without Ray and vLLM"
_CLUSTER = (
    "ref_num_nodes", "ref_num_gpus_per_node", "reward_num_nodes", "reward_num_gpus_per_node", "critic_num_nodes",
    "critic_num_gpus_per_node", "actor_num_nodes", "actor_num_gpus_per_node", "colocate_actor_ref",
    "colocate_critic_reward", "colocate_all_models", "vllm_num_engines", "vllm_tensor_parallel_size",
    "vllm_sync_backend", "vllm_sync_with_ray", "vllm_gpu_memory_utilization", "vllm_enable_sleep",
    "vllm_generate_batch_size", "enable_vllm_is_correction", "vllm_is_truncated_threshold", "enable_prefix_caching",
    "enforce_eager", "deepspeed_enable_sleep", "ds_tensor_parallel_size", "zero_stage", "zpg", "adam_offload",
    "ref_reward_offload", "actor_init_on_gpu", "grad_accum_dtype", "overlap_comm", "deepcompile", "ring_attn_size",
    "ring_head_stride", "async_train", "async_queue_size", "use_ds_universal_ckpt", "disable_ds_ckpt",
    "use_dynamic_batch", "rollout_max_tokens_per_gpu", "train_max_tokens_per_gpu", "rollout_tasks_per_gpu",
    "disable_trace_cache", "local_rank",
)  # fmt: skip
_KEPT = "a stage keeps its newest two checkpoints in the run's folder, and resumes by itself"
_DROPPED = {
    **dict.fromkeys(_CLUSTER, _ONE_PROCESS),
    **dict.fromkeys(
        ("ckpt_path", "max_ckpt_num", "max_ckpt_mem", "load_checkpoint", "save_hf_ckpt", "save_hf_model"), _KEPT
    ),
    **dict.fromkeys(("wandb_org", "wandb_group", "wandb_project", "wandb_run_name"), "the run's name is `name`"),
    **dict.fromkeys(
        ("eval_dataset", "eval_split", "eval_temperature", "eval_n_samples_per_prompt", "eval_steps"),
        "PPO's evaluations: data.prompts.eval and ppo.eval; held-out pairs: data.preferences.heldout",
    ),
    "logging_steps": "every step is logged",
    "disable_fast_tokenizer": "the fast tokenizer is used",
    "gradient_checkpointing_use_reentrant": "rlhfctl sets this itself",
    "full_determinism": "a run on the CPU is exact; see docs/ppo.md for GPUs",
    "aux_loss_coef": "0, or a mixture of experts: no such loss",
    "use_ms": "models come from folders or the Hub",
    "use_liger_kernel": "for sft and reward it is an option under trainer:",
    "perf": "`rlhfctl bench ppo` measures",
    "ptx_coef": "there is no pretrain_data",
    "pretrain_data_probs": "there is no pretrain_data",
    "enable_ema": "off",
    "ema_beta": "enable_ema is off",
    "freezing_actor_steps": "policy and critic train from the first update",
    "kl_horizon": "there is no kl_target: the coefficient is fixed",
    "normalize_reward": "reward.normalize shifts a reward model trained here, once; ppo.whiten_rewards scales rewards",
    "policy_loss_type": "ppo",
    "eps_clip_low_high": "one clip range for both sides: ppo.cliprange",
    "dual_clip": "one clip range for both sides: ppo.cliprange",
    "no_advantage_std_norm": "use ppo.whiten_advantages: false, which also leaves the mean in",
    "overlong_buffer_len": "use ppo.missing_eos_penalty",
    "overlong_penalty_factor": "use ppo.missing_eos_penalty",
    "dynamic_filtering": "every prompt of a batch is trained on",
    "dynamic_filtering_reward_range": "every prompt of a batch is trained on",
    "save_value_network": "the critic is always saved",
    "agent_func_path": "a conversation with tools has no counterpart",
    "value_head_prefix": "the head is `score`",
    "compute_fp32_loss": "losses are computed in float32",
    "packing_samples": "PPO packs by itself",
    "micro_rollout_batch_size": "use ppo.local_rollout_forward_batch_size",
    "label_key": "every other column of the prompts reaches reward functions under its own name",
}
_PPO_CARRIED = {
    "n_samples_per_prompt": "ppo.num_generations", "actor_learning_rate": "ppo.learning_rate",
    "max_norm": "ppo.max_grad_norm", "l2": "ppo.weight_decay", "eps_clip": "ppo.cliprange",
    "value_clip": "ppo.cliprange_value", "lambd": "ppo.lam", "gamma": "ppo.gamma", "temperature": "ppo.temperature",
    "top_p": "ppo.top_p", "kl_estimator": "ppo.kl_estimator", "entropy_loss_coef": "ppo.entropy_coef",
    "generate_max_len": "ppo.response_length", "max_epochs": "ppo.num_ppo_epochs", "init_kl_coef": "ppo.kl_coef",
    "gradient_checkpointing": "ppo.gradient_checkpointing", "critic_learning_rate": "ppo.critic_learning_rate",
    "reward_clip_range": "ppo.score_clip",
}  # fmt: skip
_PPO_COMPUTED = {"train_batch_size": "ppo.num_mini_batches", "use_kl_estimator_k3": "ppo.kl_estimator"}
_PPO_DEFAULTS: dict[str, Any] = {
    "actor_learning_rate": 1e-6, "value_clip": 0.5, "lambd": 1.0, "gamma": 1.0, "temperature": 1.0,
    "generate_max_len": 1024, "max_epochs": 1, "init_kl_coef": 0.01, "critic_learning_rate": 9e-6,
    "reward_clip_range": [-10.0, 10.0],
}  # fmt: skip
_TRAINED_DEFAULTS: dict[Stage, dict[str, Any]] = {
    "sft": {"max_epochs": 2, "learning_rate": 5e-6, "max_len": 2048},
    "reward": {"max_epochs": 1, "learning_rate": 9e-6, "max_len": 512},
}
_LORA = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "target_modules",
}


def translate(fields: Fields) -> None:
    """Write one job of OpenRLHF into the recipe."""
    stage = fields.job.stage
    fields.draft.open(stage)
    common.model_of(fields, "pretrain", stage)
    _precision(fields, stage)
    if stage == "ppo":
        _ppo(fields)
        _prompts(fields)
    else:
        _trained(fields)
        _rows(fields)
    _trackers(fields)
    common.carry_checkpoints(fields, stage)
    if output := fields.get("save_path"):
        fields.draft.outputs[output] = stage
        fields.draft.recipe["name"] = common.named_after(output)
    fields.changed("save_path", "the run's folder is runs/NAME, or --run-dir", "name", fields.draft.recipe.get("name"))
    fields.table({}, _DROPPED)
    fields.finish(common.reason)


def _precision(fields: Fields, stage: Stage) -> None:
    """Adapters, the number format and attention."""
    lora = fields.get("lora_rank", 0) > 0
    narrow = fields.on("bf16") or fields.get("param_dtype", "bf16" if "param_dtype" in fields else None) == "bf16"
    if lora:
        section = {
            "r": fields.get("lora_rank"),
            "lora_alpha": fields.get("lora_alpha", 16),
            "lora_dropout": float(fields.get("lora_dropout", 0)),
            "target_modules": fields.get("target_modules", "all-linear"),
        }
        common.carry_lora(fields, stage, _LORA, section)
        if fields.on("load_in_4bit"):
            fields.carry("load_in_4bit", "model.quantization", "4bit")
    for name in (*_LORA.values(), "load_in_4bit"):
        fields.drop(name, "lora_rank is 0: all weights are trained")
    key = "ppo.bf16" if stage == "ppo" else f"{stage}.trainer.bf16"
    for name in ("bf16", "param_dtype"):
        if lora and narrow:
            fields.carry(name, "model.dtype", "bfloat16")
        elif narrow:
            fields.carry(name, key, True, "computed in bfloat16 over float32 weights")
        fields.drop(name, "float32, or a format that only model.dtype can name")
    given = "flash_attention_2" if fields.on("flash_attn") else fields.get("attn_implementation")
    name = "flash_attn" if "flash_attn" in fields else "attn_implementation"
    if given == "flash_attention_2" and not lora:
        fields.drop(name, "flash_attention_2 computes in 16 bits, and the weights are float32: sdpa is used")
    elif given in ("eager", "sdpa", "flash_attention_2"):
        fields.carry(name, "model.attn_implementation", given)
    for one in ("flash_attn", "attn_implementation"):
        fields.drop(one, "model.attn_implementation knows eager, sdpa and flash_attention_2")


def _warmed(fields: Fields, stage: Stage) -> None:
    """The learning rate's schedule of sft and rm: 3% warm-up, then a cosine to a tenth of the peak."""
    ratio = float(fields.get("lr_warmup_ratio", 0.03))
    fields.carry("lr_warmup_ratio", f"{stage}.trainer.warmup_steps", ratio)
    fields.default("lr_warmup_ratio", f"{stage}.trainer.warmup_steps", ratio)
    fields.carry("lr_scheduler", f"{stage}.trainer.lr_scheduler_type")
    fields.default("lr_scheduler", f"{stage}.trainer.lr_scheduler_type", "cosine_with_min_lr", "to a tenth of the peak")
    if fields.draft.get(f"{stage}.trainer.lr_scheduler_type") == "cosine_with_min_lr":
        fields.draft.set(f"{stage}.trainer.lr_scheduler_kwargs", {"min_lr_rate": 0.1})


def _trained(fields: Fields) -> None:
    stage = fields.job.stage
    trainer = f"{stage}.trainer"
    defaults = _TRAINED_DEFAULTS[stage]
    for name, key in (
        ("max_epochs", "num_train_epochs"),
        ("learning_rate", "learning_rate"),
        ("max_len", "max_length"),
    ):
        fields.carry(name, f"{trainer}.{key}")
        fields.default(name, f"{trainer}.{key}", defaults[name])
    total, micro = fields.get("train_batch_size", 128), fields.get("micro_train_batch_size", 8)
    accumulated = max(1, total // micro)
    fields.carry("micro_train_batch_size", f"{trainer}.per_device_train_batch_size")
    fields.default("micro_train_batch_size", f"{trainer}.per_device_train_batch_size", micro)
    words = f"so that {total} rows make a step in one process"
    fields.carry("train_batch_size", f"{trainer}.gradient_accumulation_steps", accumulated, words)
    fields.default("train_batch_size", f"{trainer}.gradient_accumulation_steps", accumulated, words)
    _warmed(fields, stage)
    betas = fields.get("adam_betas", [0.9, 0.95])
    fields.draft.set(f"{trainer}.adam_beta1", betas[0])
    fields.carry("adam_betas", f"{trainer}.adam_beta2", betas[1])
    fields.default("adam_betas", f"{trainer}.adam_beta2", betas[1])
    fields.carry("l2", f"{trainer}.weight_decay")
    fields.carry("max_norm", f"{trainer}.max_grad_norm")
    fields.carry("gradient_checkpointing", f"{trainer}.gradient_checkpointing")
    if stage == "sft":
        fields.carry("packing_samples", "sft.trainer.packing")
        fields.carry("pretrain_mode", "sft.trainer.completion_only_loss", not fields.on("pretrain_mode"))
    fields.drop("packing_samples", "pairs are padded, not packed: it saves time and changes no result")
    if stage == "reward" and fields.get("loss", "sigmoid") == "sigmoid":
        fields.same("loss", "reward.loss: bradley_terry")
    fields.drop("loss", "reward.loss knows other losses")
    fields.drop("margin_loss", "a column `margin` of the pairs is read by itself")


def _ppo(fields: Fields) -> None:
    _reward(fields)
    algorithm = algorithm_of(fields)
    unused = {f"ppo.{key}" for key in unused_keys(algorithm)}
    for name, key in (_PPO_CARRIED | _PPO_COMPUTED).items():
        if key in unused:
            fields.drop(name, f"{algorithm} has no such key")
    prompts, samples = fields.get("rollout_batch_size", 1024), fields.get("n_samples_per_prompt", 1)
    batch, step = prompts * samples, fields.get("train_batch_size", 128)
    micro = min(fields.get("micro_train_batch_size", 4), batch)
    fields.carry("micro_train_batch_size", "ppo.per_device_train_batch_size", micro)
    fields.default("micro_train_batch_size", "ppo.per_device_train_batch_size", micro)
    words = f"{prompts} prompts x {samples} responses = {batch} in an update, {micro} at once"
    fields.carry("rollout_batch_size", "ppo.gradient_accumulation_steps", max(1, batch // micro), words)
    fields.default("rollout_batch_size", "ppo.gradient_accumulation_steps", max(1, batch // micro), words)
    words = f"optimizer steps per pass: {batch} / {step}"
    fields.carry("train_batch_size", "ppo.num_mini_batches", max(1, batch // step), words)
    if "ppo.num_mini_batches" not in unused:
        fields.default("train_batch_size", "ppo.num_mini_batches", max(1, batch // step), words)
    kl_loss(fields, algorithm)
    if fields.on("use_kl_estimator_k3"):  # the older name
        fields.carry("use_kl_estimator_k3", "ppo.kl_estimator", "k3")
    fields.table(_PPO_CARRIED, {})
    for name, value in _PPO_DEFAULTS.items():
        if _PPO_CARRIED[name] not in unused:
            fields.default(name, _PPO_CARRIED[name], value)
    fields.carry("prompt_max_len", "data.max_prompt_length", words="longer prompts are dropped")
    fields.default("prompt_max_len", "data.max_prompt_length", 1024)
    fields.drop("max_len", "data.max_prompt_length and ppo.response_length bound both parts")
    rows, passes = fields.get("max_samples"), fields.get("num_episodes", 1)
    updates = None
    if rows is not None:
        episodes = round(passes * rows * samples)
        updates = max(1, episodes // batch)
        words = f"responses: {passes} passes x {shown_count(rows)} prompts (max_samples) x {samples}"
        fields.carry("num_episodes", "ppo.total_episodes", episodes, words)
        fields.default("num_episodes", "ppo.total_episodes", episodes, words)
    else:
        fields.drop("num_episodes", "a number of passes; ppo.total_episodes is one of responses")
        fields.settle("ppo.total_episodes", f"set it to {passes} x {samples} x the number of prompts")
    if "lr_scheduler" not in fields:
        fields.default("lr_scheduler", "ppo.lr_scheduler_type", "cosine", "to 0; there to a tenth of the peak")
    common.schedule(fields, "lr_scheduler")
    if "lr_warmup_ratio" not in fields and updates:
        fields.default("lr_warmup_ratio", "ppo.warmup_steps", max(1, round(0.03 * updates)), "3% of the updates")
    common.warmup_updates(fields, "lr_warmup_ratio", updates)
    fields.drop("adam_betas", "AdamW has transformers' constants in PPO: 0.9 and 0.999")
    if "ppo.critic" in unused:
        for name in ("critic_pretrain", "critic_learning_rate", "freezing_actor_steps", "save_value_network"):
            fields.drop(name, f"{algorithm} has no critic")
        fields.drop("no_advantage_std_norm", f"{algorithm} does not whiten advantages")
    if fields.get("critic_pretrain") is not None and fields.get("critic_pretrain") == fields.get("reward_pretrain"):
        fields.same("critic_pretrain", "the critic starts as the reward model")
    fields.drop("critic_pretrain", "the critic starts as the reward model, or as a run's critic: ppo.critic_from")
    if "ppo.kl_target" in unused:
        for name in ("kl_target", "kl_horizon"):
            fields.drop(name, f"{algorithm} has the KL in its loss, with a fixed coefficient")
    _details(fields)


def _details(fields: Fields) -> None:
    """The adaptive KL coefficient, the loss on pretraining data, the average (per step, as here), critic's start."""
    if "kl_target" in fields and "kl_target" in fields.left:
        fields.carry("kl_target", "ppo.kl_target", words="nats per response; OpenRLHF's KL is a mean over tokens")
        fields.settle("ppo.kl_target", "multiply it by the length of a response: here the KL is per response")
        fields.carry("kl_horizon", "ppo.kl_horizon")
    if "pretrain_data" in fields:
        _sources(fields, "pretrain_data", "pretrain_data_probs", "ppo", "data.pretraining")
        fields.draft.set("ppo.ptx.data", "pretraining")
        fields.carry("ptx_coef", "ppo.ptx.coef")
        fields.default("ptx_coef", "ppo.ptx.coef", 0.05)
        fields.note("ppo.ptx.ratio", 1.0, "a row of pretrain_data per sample")
    if fields.on("enable_ema"):
        fields.carry("ema_beta", "ppo.ema_decay")
        fields.default("ema_beta", "ppo.ema_decay", 0.992)
        fields.changed("enable_ema", "the average is published", "ppo.ema_decay", fields.draft.get("ppo.ema_decay"))
    if int(fields.get("freezing_actor_steps", -1)) > 0:
        fields.carry("freezing_actor_steps", "ppo.policy_starts_after", words="counted in updates")


def shown_count(rows: float) -> str:
    """Write a number of rows, which may be a float such as 1e8."""
    return f"{int(rows)}"


def _reward(fields: Fields) -> None:
    """A reward model, several, a server, or a file with a function."""
    url = fields.get("remote_rm_url")
    if isinstance(url, str) and url.startswith("http") and "," not in url:
        fields.carry(
            "remote_rm_url", "reward.function", url,
            "the server gets prompts, completions and columns apart (there: query, one text) and answers with a list "
            "of numbers",
        )  # fmt: skip
    fields.drop(
        "remote_rm_url",
        "a Python function is reward.function: module:name, called with prompts, completions and columns",
    )
    named = fields.get("reward_pretrain")
    if isinstance(named, str) and "," in named:
        weights = {one.strip(): 1.0 for one in named.split(",")}
        fields.carry("reward_pretrain", "ppo.rewards", weights, "the sum of their scores; set the weights")
    common.link_reward(fields, "reward_pretrain")
    need_reward(fields)


# ---------------------------------------------------------------- data sets


def _sources(fields: Fields, name: str, probs: str, stage: Stage, at: str = "") -> None:
    """Write one or several data sets with their weights, at a key. Names may be `id`, `id@folder` or a path."""
    prompts, given = not at and stage == "ppo", fields.get(name)
    at = at or f"data.{DATA[stage]}"
    if given is None:
        fields.draft.set(f"{at}.source", f"your-{DATA[stage]}")
        fields.settle(f"{at}.source", "the command names no data set: write a file, a folder or an id on the Hub")
        return
    names = [one.strip() for one in str(given).split(",")]
    kept = "100 prompts are kept for compare (data.prompts.test), and not trained on" if prompts else ""
    if len(names) == 1:
        fields.carry(name, f"{at}.source", names[0], kept)
        fields.same(probs, "one source")
    else:
        shares = str(fields.get(probs, "")).split(",") if probs in fields else []
        even = len(shares) != len(names)
        sources = [{"source": one, **({} if even else {"weight": float(share)})}
                   for one, share in zip(names, shares if not even else names, strict=True)]  # fmt: skip
        fields.carry(name, f"{at}.sources", sources, kept)
        fields.changed(probs, "how many times each row of a source is used, not its share of the mixture")


def _columns(fields: Fields, stage: Stage, names: dict[str, str]) -> None:
    """Write which columns are read. `names`: the option -> rlhfctl's column."""
    for option, column in names.items():
        if fields.get(option) == column:
            fields.same(option, f"the column `{column}` is read as it is")
        fields.carry(option, f"data.{DATA[stage]}.columns.{column}")


def _rows(fields: Fields) -> None:
    """The rows of sft and rm."""
    stage = fields.job.stage
    at = f"data.{DATA[stage]}"
    _sources(fields, "dataset", "dataset_probs", stage)
    for name in ("dataset_split", "train_split"):
        fields.carry(name, f"{at}.split")
    talks = fields.on("apply_chat_template")
    if stage == "sft":
        turns = talks and "output_key" not in fields
        _columns(fields, stage, {"input_key": "messages" if turns else "prompt", "output_key": "completion"})
        fields.default("input_key", f"{at}.columns.{'messages' if turns else 'prompt'}", "input")
    else:
        _columns(fields, stage, {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected"})
    _limit(fields, at)
    _template(fields, at)


def _prompts(fields: Fields) -> None:
    """The prompts of PPO."""
    _sources(fields, "prompt_data", "prompt_data_probs", "ppo")
    fields.carry("prompt_split", "data.prompts.split")
    _columns(fields, "ppo", {"input_key": "prompt"})
    fields.default("input_key", "data.prompts.columns.prompt", "input")
    _limit(fields, "data.prompts")
    _template(fields, "data.prompts")


def _limit(fields: Fields, at: str) -> None:
    """The number of rows to read; with several sources, of each."""
    if "max_samples" not in fields:
        return
    count = int(fields.get("max_samples"))
    sources = fields.draft.get(f"{at}.sources")
    if sources is None:
        fields.carry("max_samples", f"{at}.limit", count)
        return
    for source in sources:
        source["limit"] = count
    fields.changed("max_samples", "of each source; there of all together", f"{at}.sources.limit", count)


def _template(fields: Fields, at: str) -> None:
    """How texts become prompts: the chat template, or a frame around the text."""
    if fields.on("apply_chat_template"):
        fields.same("apply_chat_template", "conversations go through the chat template")
    fields.same("apply_chat_template", "off")
    fields.drop("input_template", f"write the frame into the data, or use {at}.as_conversations with a chat template")
    fields.carry("tokenizer_chat_template", "model.chat_template")


def _trackers(fields: Fields) -> None:
    listed = fields.draft.get("report_to") or []
    for name, tracker in (("use_wandb", "wandb"), ("use_tensorboard", "tensorboard")):
        if fields.get(name):
            fields.draft.set("report_to", sorted({*listed, tracker}))
            fields.changed(name, "keys and folders stand in the tracker's own variables", "report_to", [tracker])
            listed = fields.draft.get("report_to")
        fields.drop(name, "off")
