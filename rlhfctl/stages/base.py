"""Prepare base* without fine-tuning: save the recipe's model unchanged, ready for the later stages.

Reads `model` (a folder, a Hub id, or new weights) and, for new weights, the demonstrations that train its tokenizer.
Writes model/ with tokenizer, template, pad token and pad row, and probe log-probabilities. Trains nothing.
"""

from __future__ import annotations

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.data.chat import template_warnings
from rlhfctl.data.encoding import Encoder, is_conversation
from rlhfctl.models import build, checks, loading, scoring, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.schema import Model
from rlhfctl.stages import probes
from rlhfctl.stages.context import Context


def run(section: Model, ctx: Context) -> Artifact:
    """Save the recipe's model and publish it as base*."""
    prepared = tokenizing.prepare(ctx.recipe, ctx.data)
    tokenizer = prepared.tokenizer
    dtype = loading.torch_dtype(section.dtype)
    model, notes = build.base_from_recipe(section, prepared, seed=ctx.recipe.seed, dtype=dtype)
    for sentence in notes:
        ctx.note(sentence)
    prompts = ctx.data["prompts"].rows if "prompts" in ctx.data else []
    if any(is_conversation(row) for row in prompts):
        for sentence in template_warnings(tokenizer):
            ctx.warn(sentence)

    encoder = Encoder(tokenizer)
    rows = (
        [encoder.prompt(row["prompt"], row.get("tools")) for row in ctx.data["prompts"].rows[: scoring.PROBE_ROWS]]
        if "prompts" in ctx.data
        else []
    )
    longest = context_of(model.config) or scoring.PROBE_TOKENS
    rows = [row[:longest] for row in rows if len(row) > 1] or [[tokenizer.eos_token_id] * 2]
    build.to_device(model)
    if section.path is not None:
        checks.check_loaded(model, ctx.recipe, section.path)
    probes.write_probes(ctx.folder, rows, scoring.sequence_logprobs(model, rows, tokenizer.pad_token_id), "logprobs")
    with fs.publish_folder(ctx.folder / "model") as folder:
        build.save_model(model, tokenizer, folder)
    _, parameters = build.count_parameters(model)
    return ctx.publish(
        section.model_dump(mode="json"),
        {"model": "model", "probes": probes.PROBES},
        metrics={"parameters": parameters},
        tokenizer=tokenizing.tokenizer_fingerprint(tokenizer),
        chat_template=tokenizing.template_fingerprint(tokenizer),
    )
