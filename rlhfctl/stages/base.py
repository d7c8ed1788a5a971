"""base* without fine-tuning: the recipe's model as it is, made ready to hand over.

Reads `model` (a folder, a Hub id, or new weights) and, for new weights, the demonstrations its tokenizer learns from;
writes model/ with tokenizer, template, pad token and pad row, and probe log-probabilities. Trains nothing.
"""

from __future__ import annotations

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.recipe.schema import Model
from rlhfctl.stages import Context, handoff
from rlhfctl.training import loading, model_checks, models, tokenizing
from rlhfctl.training.architecture import context_of
from rlhfctl.training.encoding import Encoder, is_conversation, template_warnings


def run(section: Model, ctx: Context) -> Artifact:
    """Publish base*."""
    prepared = tokenizing.prepare(ctx.recipe, ctx.data)
    tokenizer = prepared.tokenizer
    dtype = loading.torch_dtype(section.dtype)
    model, notes = models.base_from_recipe(section, prepared, seed=ctx.recipe.seed, dtype=dtype)
    for sentence in notes:
        ctx.note(sentence)
    asked = ctx.data["prompts"].rows if "prompts" in ctx.data else []
    if any(is_conversation(row) for row in asked):
        for sentence in template_warnings(tokenizer):
            ctx.warn(sentence)

    encoder = Encoder(tokenizer)
    rows = (
        [encoder.prompt(row["prompt"], row.get("tools")) for row in ctx.data["prompts"].rows[: models.PROBE_ROWS]]
        if "prompts" in ctx.data
        else []
    )
    longest = context_of(model.config) or models.PROBE_TOKENS
    rows = [row[:longest] for row in rows if len(row) > 1] or [[tokenizer.eos_token_id] * 2]
    models.to_device(model)
    if section.path is not None:
        model_checks.check_loaded(model, ctx.recipe, section.path)
    handoff.write_probes(ctx.folder, rows, models.sequence_logprobs(model, rows, tokenizer.pad_token_id), "logprobs")
    with fs.publish_folder(ctx.folder / "model") as folder:
        models.save_model(model, tokenizer, folder)
    _, parameters = models.count_parameters(model)
    return ctx.publish(
        section.model_dump(mode="json"),
        {"model": "model", "probes": handoff.PROBES},
        metrics={"parameters": parameters},
        tokenizer=tokenizing.tokenizer_fingerprint(tokenizer),
        chat_template=tokenizing.template_fingerprint(tokenizer),
    )
