"""Fine-tune the model on demonstrations (supervised fine-tuning, SFT); the result is base*.

Reads the recipe's `model` and `data.demonstrations`. Trains with TRL's SFTTrainer, all weights or LoRA. Writes model/
(merged, with tokenizer, template and pad), adapter/ if LoRA was used, and probes.json: log-probabilities of the trained
model before merging. Every later stage compares the model that it loads with them. With `sft.choose` it hands over the
checkpoint whose samples score best, not the last one (choice.py), and writes choice.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from peft import PeftModel, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.data.chat import template_warnings
from rlhfctl.data.encoding import IGNORED, Encoder, is_conversation
from rlhfctl.data.fitting import longest_row
from rlhfctl.data.store import Store
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError
from rlhfctl.events import Work
from rlhfctl.models import adapters, build, checks, loading, merging, scoring, special_tokens, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.models.processes import ALONE
from rlhfctl.recipe.schema import Sft
from rlhfctl.recipe.sections.scorers import HELDOUT_LOSS
from rlhfctl.stages import probes
from rlhfctl.stages.choice import CHOICE, Choice, choice_for
from rlhfctl.stages.context import Context
from rlhfctl.stages.heldout_loss import HeldoutLoss
from rlhfctl.training.trl import options
from rlhfctl.training.trl.datasets import dataset_of
from rlhfctl.training.trl.shared_batches import SharedSftTrainer
from rlhfctl.training.trl.train import train


def run(section: Sft, ctx: Context) -> Artifact:
    """Train base* and publish it; training resumes from a checkpoint."""
    recipe, split = ctx.recipe, ctx.data["demonstrations"].demonstrations

    # 1. Load: the model to start from, its tokenizer with pad and template.
    dtype = loading.torch_dtype(recipe.model.dtype)
    prepared = tokenizing.prepare(recipe, ctx.data)
    tokenizer = prepared.tokenizer
    model, notes = build.base_from_recipe(
        recipe.model, prepared, seed=recipe.seed, dtype=dtype, quantization=recipe.model.quantization
    )
    if any(is_conversation(row) for row in ctx.data["demonstrations"].rows):
        for sentence in template_warnings(tokenizer):
            ctx.warn(sentence)
    for sentence in notes:
        ctx.note(sentence)
    if recipe.model.path is not None:
        checks.check_loaded(model if ctx.divides else build.to_device(model), recipe, recipe.model.path)

    # 2. Rows to ids.
    config = _config(section, ctx)
    encoded, heldout_rows = _encode(split.train, tokenizer, config, model, ctx, split.heldout)
    heldout = HeldoutLoss(heldout_rows, ctx, tokenizer.pad_token_id) if heldout_rows else None

    # 3. Train whole weights, or an adapter on them.
    if section.lora is not None:
        model = adapters.add_lora(model, section.lora, TaskType.CAUSAL_LM, seed=recipe.seed, tokens=prepared.added)
    context = context_of(model.config)
    choice = None if section.choose is None else choice_for(section.choose, ctx, tokenizer, context, heldout)
    looks: list[Choice | HeldoutLoss] = [choice] if choice is not None else []
    looks += [heldout] if heldout is not None and (choice is None or choice.by != HELDOUT_LOSS) else []
    model, metrics = train(
        partial(SharedSftTrainer, args=config, train_dataset=dataset_of(encoded), processing_class=tokenizer),
        model,
        section,
        stage=ctx.name,
        work=ctx.work,
        emit=ctx.emit,
        warn=ctx.warn,
        counts=lambda trainer: {"rows": len(trainer.train_dataset)},
        metrics=("loss", "mean_token_accuracy", "num_tokens"),
        divided=ctx.divides,
        candidates=looks,
    )
    ctx.leave_to_first()
    if choice is not None:
        metrics |= choice.settle(model)
    if heldout is not None:
        metrics |= {"eval_loss": heldout.of(model, ALONE)}

    # 4. Save: record outputs, merge, publish, load again and compare.
    longest = min(scoring.PROBE_TOKENS, config.max_length or scoring.PROBE_TOKENS)  # within the model's context
    rows = [row["input_ids"][:longest] for row in encoded[: scoring.PROBE_ROWS]]
    _publish(model, prepared, rows, ctx)
    del model
    metrics["reload_gap"] = _reload_gap(ctx, tokenizer)
    layout: dict[str, Any] = {"model": "model", "probes": probes.PROBES}
    if section.lora is not None:
        layout["adapter"] = "adapter"
    if choice is not None:
        layout["choice"] = CHOICE
    return ctx.publish(
        section.model_dump(mode="json"),
        layout,
        metrics=metrics,
        tokenizer=tokenizing.tokenizer_fingerprint(tokenizer),
        chat_template=tokenizing.template_fingerprint(tokenizer),
    )


def _config(section: Sft, ctx: Context) -> SFTConfig:
    recipe = ctx.recipe
    arguments = options.trainer_arguments(ctx.work, recipe.model.dtype, section.trainer, seed=recipe.seed)
    return SFTConfig(**arguments)


def _encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    config: SFTConfig,
    model: PreTrainedModel,
    ctx: Context,
    heldout: Sequence[Row] = (),
) -> tuple[Sequence[dict[str, list[int]]], list[dict[str, list[int]]]]:
    """Encode the demonstrations and the `heldout` ones as ids and labels; warn about those that are too long."""
    encoder = Encoder(tokenizer)
    limit, name = longest_row(config.max_length, context_of(model.config))
    encoded: Store[dict[str, list[int]]] = Store()
    cut = lost = 0
    learned = {
        "completion_only_loss": config.completion_only_loss,
        "assistant_only_loss": config.assistant_only_loss,
    }
    for row in Work("encoding demonstrations", len(rows)).through(rows):
        one = encoder.demonstration(row, **learned)
        encoded.append(one)
        cut += limit is not None and len(one["input_ids"]) > limit
        lost += limit is not None and all(label == IGNORED for label in one["labels"][:limit])
    aside = [{key: ids[:limit] for key, ids in encoder.demonstration(row, **learned).items()} for row in heldout]
    # Both options are applied by now; TRL would require columns that no longer exist.
    config.completion_only_loss, config.assistant_only_loss = False, False
    if sentence := encoder.warning("demonstrations"):
        ctx.warn(sentence)
    config.max_length = limit  # the model has no trained positions beyond its context
    if cut and not config.packing:
        ctx.warn(f"{cut} of {len(encoded)} demonstrations are longer than {name} tokens and are cut there")
        if lost == len(encoded):
            raise DataError(
                f"no demonstration has a token to learn from among its first {limit}",
                where="sft.trainer.max_length",
                fix="raise it where the model's context allows, or give shorter prompts",
            )
        if lost:
            ctx.warn(f"{lost} of them are left without a single token to learn from and are dropped")
    return encoded.items(), aside


def _publish(model: Any, prepared: tokenizing.Prepared, rows: list[list[int]], ctx: Context) -> None:
    """Record log-probabilities of the trained model, merge its adapter, and save."""
    recipe, tokenizer = ctx.recipe.model, prepared.tokenizer
    probes.write_probes(ctx.folder, rows, scoring.sequence_logprobs(model, rows, tokenizer.pad_token_id), "logprobs")
    if isinstance(model, PeftModel):
        with fs.publish_folder(ctx.folder / "adapter") as folder:
            adapters.save_adapter(model, folder, base=recipe.path or "", head=False)
        if recipe.quantization is not None:  # merge base* in full precision; later stages quantize it on loading
            del model
            whole, _ = build.base_from_recipe(
                recipe, prepared, seed=ctx.recipe.seed, dtype=loading.torch_dtype(recipe.dtype)
            )
            model = merging.load_adapter(whole, ctx.folder / "adapter")
        model = merging.merged(model)
    special_tokens.set_token_ids(model, tokenizer)
    with fs.publish_folder(ctx.folder / "model") as folder:
        build.save_model(model, tokenizer, folder)


def _reload_gap(ctx: Context, tokenizer: PreTrainedTokenizerBase) -> float:
    """Load the merged model from disk and measure how far (nats) it differs; HandoffError above tolerance."""
    section = ctx.recipe.model
    reloaded = loading.load_causal_lm(
        str(ctx.folder / "model"), **loading.options(section), quantization=section.quantization
    )
    if not ctx.divides:
        build.to_device(reloaded)
    return probes.check_logprobs(reloaded, tokenizer.pad_token_id, ctx.folder / probes.PROBES, ctx.loader.precision)
