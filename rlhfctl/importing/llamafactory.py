"""Translate LLaMA-Factory's arguments: stage sft, rm and ppo.

Its PPO is TRL 0.9's trainer with the KL coefficient 0.2, moved towards `ppo_target`
(llamafactory/train/ppo/trainer.py). Data sets are names of `dataset_info.json` in `dataset_dir`; where that file is
found, their files and columns are taken from it. Defaults are those of its hparams that differ from rlhfctl's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhfctl.importing import common
from rlhfctl.importing.findings import Fields, Stage
from rlhfctl.importing.trl import DATA, adaptive_kl, need_reward, normalized_scores

_ALWAYS = {
    "dataset_dir": "sources stand in the recipe",
    "use_fast_tokenizer": "the fast tokenizer is used",
    "resume_from_checkpoint": "give the same command again: it resumes by itself",
    "upcast_layernorm": "norms stay in the model's dtype",
    "additional_target": "the section lora has no such option",
    "use_rslora": "the section lora has no such option",
    "use_dora": "the section lora has no such option",
    "pissa_init": "the section lora has no such option",
    "loraplus_lr_ratio": "adapters have one learning rate",
    "mix_strategy": "sources are mixed by their `weight`",
    "eval_dataset": common.NO_EVAL,
    "cache_dir": "HF_HOME says where downloads are kept",
    "quantization_method": "quantization is bitsandbytes'",
    "shift_attn": "rlhfctl leaves attention as the model has it",
    "rope_scaling": "set it in the model's config.json",
    "enable_thinking": "use model.chat_template_kwargs",
    "hf_hub_token": "set the environment variable HF_TOKEN",
    "ref_model": "the reference is base*, what PPO starts from",
    "reward_model_quantization_bit": "the reward model shares the quantized base, or is loaded whole",
    "reward_model_adapters": "name the adapter's folder as reward.model",
}
_GENERATION = {"max_new_tokens": "response_length", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p"}
_GENERATION_DEFAULTS = {"max_new_tokens": 1024, "temperature": 0.95, "top_k": 50, "top_p": 0.7}
_TRAINER_DEFAULTS: dict[str, Any] = {"learning_rate": 5e-5, "per_device_train_batch_size": 8, "num_train_epochs": 3.0}


def translate(fields: Fields) -> None:
    """Write one job of LLaMA-Factory into the recipe."""
    stage = fields.job.stage
    fields.draft.open(stage)
    fields.same("stage", f"the section {stage}")
    _model(fields, stage)
    _adapters(fields, stage)
    (_ppo if stage == "ppo" else _trained)(fields)
    _data(fields, stage)
    if output := fields.get("output_dir"):
        fields.draft.outputs[output] = stage
        fields.draft.recipe["name"] = common.named_after(output)
    fields.changed("output_dir", "the run's folder is runs/NAME, or --run-dir", "name", fields.draft.recipe.get("name"))
    fields.table({}, _ALWAYS)
    fields.finish(common.reason)


def _model(fields: Fields, stage: Stage) -> None:
    adapter = fields.get("adapter_name_or_path")
    if adapter in fields.draft.outputs:
        fields.same(
            "adapter_name_or_path", f"what the {fields.draft.outputs[adapter]} stage trains is merged into base*"
        )
        fields.same("model_name_or_path", "base* is this model with that adapter")
    elif adapter is not None:  # a folder with an adapter is loaded with its base and merged
        fields.carry("adapter_name_or_path", "model.path", words="it is merged into its base")
        fields.changed("model_name_or_path", "the adapter's folder names its base")
    common.model_of(fields, "model_name_or_path", stage)
    if fields.get("model_revision", "main") != "main":
        fields.carry("model_revision", "model.revision")
    fields.same("model_revision", "the default branch")
    fields.carry("trust_remote_code", "model.trust_remote_code")
    attention = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}.get(str(fields.get("flash_attn")))
    if attention is not None:
        fields.carry("flash_attn", "model.attn_implementation", attention)
    fields.drop("flash_attn", "auto: the architecture's default")
    narrow = fields.get("bf16") is True and (fields.get("finetuning_type", "lora") == "lora" or fields.on("pure_bf16"))
    if narrow:
        fields.note("model.dtype", "bfloat16", "with bf16, frozen weights are loaded so")
    fields.drop("pure_bf16", "model.dtype: bfloat16 is the same")
    template = fields.get("template")
    if template in ("chatml", "zephyr"):
        fields.carry("template", "model.chat_template")
    fields.changed("template", "conversations go through the tokenizer's own chat template, unless model.chat_template")


def _adapters(fields: Fields, stage: Stage) -> None:
    kind = fields.get("finetuning_type", "lora")
    if kind == "lora":
        fields.same("finetuning_type", "adapters are the section lora")
        rank = fields.get("lora_rank", 8)
        target = fields.get("lora_target", "all")
        modules = "all-linear" if target == "all" else [name.strip() for name in str(target).split(",")]
        section = {
            "r": rank,
            "lora_alpha": fields.get("lora_alpha", 2 * rank),
            "lora_dropout": float(fields.get("lora_dropout", 0.0)),
            "target_modules": modules,
        }
        names = {key: key.replace("lora_r", "lora_rank") for key in ("lora_alpha", "lora_dropout")}
        common.carry_lora(fields, stage, {"r": "lora_rank", **names, "target_modules": "lora_target"}, section)
        bits = fields.get("quantization_bit")
        if bits in (4, 8):
            fields.carry("quantization_bit", "model.quantization", f"{bits}bit")
    elif kind == "full":
        fields.same("finetuning_type", "all weights are trained")
    fields.drop("finetuning_type", "all weights are trained, or LoRA adapters")
    fields.drop("quantization_bit", "a quantized base needs LoRA, and 4 or 8 bits")
    for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target"):
        fields.drop(name, "finetuning_type is not lora")


def _trained(fields: Fields) -> None:
    stage = fields.job.stage
    fields.carry("cutoff_len", f"{stage}.trainer.max_length", words=_cut(stage))
    fields.default("cutoff_len", f"{stage}.trainer.max_length", 2048)
    for name, value in _TRAINER_DEFAULTS.items():
        fields.default(name, f"{stage}.trainer.{name}", value)
    fields.default("bf16", f"{stage}.trainer.bf16", False)
    off = fields.on("disable_gradient_checkpointing")
    fields.carry("disable_gradient_checkpointing", f"{stage}.trainer.gradient_checkpointing", not off)
    fields.default("disable_gradient_checkpointing", f"{stage}.trainer.gradient_checkpointing", True)
    if stage == "sft":
        fields.carry("train_on_prompt", "sft.trainer.completion_only_loss", not fields.on("train_on_prompt"))
        fields.drop("mask_history", "sft.trainer.assistant_only_loss trains on all of the assistant's turns")
    size = fields.get("val_size", 0)
    if isinstance(size, float) and 0 < size <= 0.9:
        name, rows = ("preferences", "pairs") if stage == "reward" else ("demonstrations", "rows")
        fields.carry("val_size", f"data.{name}.heldout", words=f"a share of the prompts, not of the {rows}")
    fields.drop("val_size", common.NO_EVAL)
    common.trained_options(fields, stage)


def _cut(stage: Stage) -> str:
    return "pairs that are longer are left out by TRL, not cut" if stage == "reward" else "TRL cuts the end"


def _ppo(fields: Fields) -> None:
    draft = fields.draft
    kind = fields.get("reward_model_type", "lora")
    if kind == "api" and fields.get("reward_model"):
        url = fields.get("reward_model")
        fields.carry(
            "reward_model", "reward.function", url,
            "the server gets prompts, completions and columns, and answers with a list of numbers",
        )  # fmt: skip
    common.link_reward(fields, "reward_model")
    fields.same("reward_model_type", "adapter, model or server: the folder tells")
    need_reward(fields)
    batch, accumulated = fields.get("per_device_train_batch_size", 8), fields.get("gradient_accumulation_steps", 1)
    buffer = fields.get("ppo_buffer_size", 1)
    fields.carry("per_device_train_batch_size", "ppo.per_device_train_batch_size", words="of one process")
    fields.default("per_device_train_batch_size", "ppo.per_device_train_batch_size", 8)
    fields.carry(
        "gradient_accumulation_steps", "ppo.gradient_accumulation_steps", accumulated * buffer,
        f"an update's {batch * accumulated * buffer} responses, with ppo_buffer_size {buffer}",
    )  # fmt: skip
    if buffer > 1 and not draft.has("ppo.gradient_accumulation_steps"):
        draft.set("ppo.gradient_accumulation_steps", buffer)
    fields.carry("ppo_buffer_size", "ppo.num_mini_batches", words="optimizer steps per pass over an update's batch")
    rows, epochs = fields.get("max_samples"), fields.get("num_train_epochs", 3.0)
    updates = None
    if rows is not None:
        names = str(fields.get("dataset", "")).split(",")
        episodes = round(epochs * rows * len(names))
        updates = max(1, episodes // (batch * accumulated * buffer))
        fields.carry(
            "num_train_epochs", "ppo.total_episodes", episodes,
            f"a number of responses: {epochs:g} x max_samples of {len(names)} data sets, where each has so many",
        )  # fmt: skip
        fields.default("num_train_epochs", "ppo.total_episodes", episodes, "3 passes over max_samples")
    else:
        fields.drop("num_train_epochs", "PPO's length is counted in episodes")
        fields.settle("ppo.total_episodes", f"set it to {epochs:g} x the number of prompts")
    fields.carry("learning_rate", "ppo.learning_rate")
    fields.default("learning_rate", "ppo.learning_rate", 5e-5)
    common.schedule(fields, "lr_scheduler_type")
    common.warmup_updates(fields, "warmup_ratio", updates)
    fields.carry("warmup_steps", "ppo.warmup_steps", words="counted in updates")
    if draft.get("model.dtype") == "bfloat16":
        fields.same("bf16", "model.dtype: bfloat16")
    fields.table(
        {"ppo_epochs": "ppo.num_ppo_epochs", "ppo_whiten_rewards": "ppo.whiten_rewards",
         "max_grad_norm": "ppo.max_grad_norm", "weight_decay": "ppo.weight_decay", "bf16": "ppo.bf16"},
        {"fp16": "use bf16, or model.dtype",
         "do_sample": "responses are sampled", "num_beams": "responses are sampled",
         "repetition_penalty": "the policy is sampled as it is", "length_penalty": "of beams",
         "gradient_checkpointing_kwargs": "rlhfctl sets this itself"},
    )  # fmt: skip
    fields.default("init_kl_coef", "ppo.kl_coef", 0.2)
    adaptive_kl(fields, "ppo_target", "horizon")
    if fields.on("ppo_score_norm"):
        normalized_scores(fields, "ppo_score_norm", centred=True)
    fields.same("ppo_score_norm", "off")
    for name, key in _GENERATION.items():
        fields.carry(name, f"ppo.{key}")
        fields.default(name, f"ppo.{key}", _GENERATION_DEFAULTS[name])
    fields.carry("cutoff_len", "data.max_prompt_length", words="of the prompt alone")
    draft.set("data.overlong_prompts", "truncate")
    off = fields.on("disable_gradient_checkpointing")
    fields.carry("disable_gradient_checkpointing", "ppo.gradient_checkpointing", not off)
    fields.drop("val_size", "data.prompts.eval and .test are numbers of prompts")
    common.carry_checkpoints(fields, "ppo")


# ---------------------------------------------------------------- data sets


def _data(fields: Fields, stage: Stage) -> None:
    at, name = f"data.{DATA[stage]}", fields.get("dataset")
    if name is None:
        fields.draft.set(f"{at}.source", f"your-{DATA[stage]}")
        fields.settle(f"{at}.source", "the job names no data set: write a file, a folder or an id on the Hub")
        return
    folder = Path(str(fields.get("dataset_dir", "data")))
    info = _dataset_info(folder)
    names = [one.strip() for one in (name if isinstance(name, list) else str(name).split(","))]
    sources = [_source(one, info, folder, stage, fields) for one in names]
    limit = fields.get("max_samples")
    if limit is not None:
        for source in sources:
            source.setdefault("limit", limit)
        fields.changed("max_samples", "the first rows of each source", f"{at}.limit", limit)
    value = sources[0] if len(sources) == 1 else {"sources": sources}
    for key, item in value.items():
        fields.draft.set(f"{at}.{key}", item)
    here = sources[0]["source"] if len(sources) == 1 else [one["source"] for one in sources]
    kept = "100 prompts are kept for compare (data.prompts.test), and not trained on" if stage == "ppo" else ""
    fields.changed("dataset", kept or "files, folders or ids on the Hub", f"{at}.source", here)
    unknown = [one for one in names if one not in info]
    if unknown:
        fields.settle(
            f"{at}.source",
            f"{', '.join(unknown)}: no entry of {folder}/dataset_info.json was found: write the file or the id "
            "on the Hub, and its columns",
        )


def _dataset_info(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: entry for name, entry in info.items() if isinstance(entry, dict)} if isinstance(info, dict) else {}


def _source(name: str, info: dict[str, dict[str, Any]], folder: Path, stage: Stage, fields: Fields) -> dict[str, Any]:
    """Make the source of one data set, with its columns where dataset_info.json tells them."""
    entry = info.get(name)
    if entry is None:
        return {"source": name}
    source: dict[str, Any] = {"source": entry.get("hf_hub_url") or str(folder / str(entry.get("file_name", name)))}
    for key, ours in (("subset", "subset"), ("split", "split"), ("num_samples", "limit")):
        if entry.get(key) is not None:
            source[ours] = entry[key]
    told = dict(entry.get("columns") or {})
    ranked = {"chosen": told.get("chosen", "chosen"), "rejected": told.get("rejected", "rejected")}
    if entry.get("formatting") == "sharegpt":
        turns = told.get("messages", "conversations")
        columns = {"prompt": turns, **ranked} if stage == "reward" else {"messages": turns}
    else:
        prompt = [
            told.get("prompt", "instruction"),
            *([told.get("query", "input")] if told.get("query", "input") else []),
        ]
        columns = {"prompt": prompt[0] if len(prompt) == 1 else prompt}
        columns |= (
            ranked if stage == "reward" else {"completion": told.get("response", "output")} if stage == "sft" else {}
        )
        if fields.get("template", "default") != "empty":
            source["as_conversations"] = True
    if told.get("system"):
        columns["system"] = told["system"]
    source["columns"] = {key: value for key, value in columns.items() if key != value}
    return source if source["columns"] else {key: value for key, value in source.items() if key != "columns"}
