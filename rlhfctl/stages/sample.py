"""Write the responses that people compare: base* in the first round, later the policy of the round before.

    training prompts of this round ──▶ K different responses each ──▶ items.jsonl (the labelling set)

Reads base*, the policy of the round before, and `data.prompts`. Each round has prompts of its own, as long as there are
enough. Empty responses, and those that equal another one of their prompt, are drawn again a few times; a prompt with
fewer than two different ones is left out and counted. Resumes after the last whole block. Leaves out who judges
(stages/label.py).
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

from rlhfctl.artifacts import Artifact, Source
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.errors import DataError
from rlhfctl.events import Progress, StageStarted
from rlhfctl.generation import local
from rlhfctl.generation.generator import Generator, Sampling, sampling_for
from rlhfctl.labels.items import write_items
from rlhfctl.models.architecture import context_of
from rlhfctl.paths import StageId
from rlhfctl.recipe.schema import Ppo, Sample
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import Base
from rlhfctl.stages.responses import Drawing, Writer, items_of

ITEMS = "items.jsonl"
_STREAM = 3 << 32  # a stream of random numbers that neither training, evaluation nor the card's pool uses


def run(section: Sample, ctx: Context, generate: Generator = local.sample) -> Artifact:
    """Sample the labelling set of this round, and publish it."""
    # 1. The models, and the prompts of this round.
    models = {origin: ctx.loader.load_base(source) for origin, source in _sources(section, ctx).items()}
    first = next(iter(models.values()))
    sampling = _sampling(section, ctx, first)
    context = context_of(first.model.config)
    rows, prompts = encode_prompts(
        ctx.data["prompts"].split.train, first.tokenizer, context, sampling.max_new_tokens, ctx.recipe.data, ctx.warn
    )
    chosen = _prompts_of_the_round(section, len(rows), ctx)
    rows, prompts = [rows[index] for index in chosen], [prompts[index] for index in chosen]
    writers = [Writer(origin, base, prompts, sampling) for origin, base in models.items()]

    # 2. Responses, each prompt's different from each other.
    total = len(rows) * section.responses
    settings: dict[str, Any] = {"prompts": len(rows), "responses": section.responses}
    settings |= {"models": [one.origin for one in writers], "temperature": sampling.temperature}
    settings |= {"max_new_tokens": sampling.max_new_tokens}
    drawing = Drawing(section.responses, writers, rows, generate, ctx.work / "samples", partial(_report, ctx, total))
    ctx.emit(StageStarted(stage=ctx.name, total_steps=total, resumed_from=drawing.done, settings=settings))
    drawn = drawing.draw()

    # 3. Items: a prompt with its responses.
    items = list(items_of(rows, drawn, ctx.note))
    if not items:
        raise DataError(
            "the model answers every prompt with one response again and again: there is nothing to compare",
            where="sample.temperature",
            fix="raise it",
        )
    write_items(ctx.folder / ITEMS, items)
    metrics = {"items": len(items), "responses": sum(len(item.responses) for item in items)}
    return ctx.publish(section.model_dump(mode="json"), {"items": ITEMS}, metrics=metrics)


def _sources(section: Sample, ctx: Context) -> dict[str, Source]:
    """Return the models that write, by what is recorded as origin."""
    latest = ctx.parents.get("policy", ctx.parents["base"])
    named = {"latest": latest, "base": ctx.parents["base"]}
    found = {_origin(named[name]): named[name] for name in section.models}
    if len(found) < len(section.models):
        ctx.note("in the first round the latest model is base*: one model writes all responses")
    return found


def _origin(source: Source) -> str:
    return source.name if source.artifact is None else source.artifact.manifest.stage


def _sampling(section: Sample, ctx: Context, base: Base) -> Sampling:
    """Return PPO's settings of sampling, with this section's temperature; each round has random numbers of its own."""
    stream = _STREAM + StageId.parse(ctx.name).round
    found = sampling_for(ctx.recipe.ppo or Ppo(temperature=1.0), base.tokenizer, seed=ctx.recipe.seed, stream=stream)
    return replace(found, temperature=section.temperature or found.temperature, batch_size=section.batch_size)


def _prompts_of_the_round(section: Sample, available: int, ctx: Context) -> list[int]:
    """Return the places of this round's prompts in the training split: other ones in each round, while there are."""
    rounds, number = ctx.recipe.rounds, StageId.parse(ctx.name).round
    counts = rounds.questions(section.prompts) if rounds is not None else [section.prompts]
    before, count = sum(counts[: number - 1]), counts[number - 1]
    if section.prompts > available and number == 1:
        ctx.note(
            f"there are {available} training prompts for {section.prompts} questions: some are asked again, with other "
            "responses"
        )
    order: list[int] = []
    while len(order) < before + count:
        again = len(order) // available
        order += random.Random(f"questions {ctx.recipe.data_seed} {again}").sample(range(available), available)
    return order[before : before + count]


def _report(ctx: Context, total: int, step: int) -> None:
    ctx.emit(Progress(stage=ctx.name, step=step, total=total, unit="response"))
