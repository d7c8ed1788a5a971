"""Write the responses that people compare: base* in the first round, later the policy of the round before.

    training prompts of this round ──▶ K different responses each ──▶ items.jsonl (the labelling set)

Reads base*, the policy of the round before, and `data.prompts`. Each round has prompts of its own, as long as there are
enough. Empty responses, and those that equal another one of their prompt, are drawn again a few times; a prompt with
fewer than two different ones is left out and counted. Resumes after the last whole block. Leaves out who judges
(stages/label.py).

With `sample.candidates: C` it writes C times as many questions from the second round on, and keeps those on which the
members of the last round's reward ensemble differ most: the variance over members of the predicted preference
(Christiano et al. 2017, section 2.2.4). An item then records it as `disagreement`. In the first round no members are
there to differ: the questions are drawn as without candidates.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

from rlhfctl.artifacts import Artifact, Source
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.events import Progress, StageStarted
from rlhfctl.generation import local
from rlhfctl.generation.generator import Generator, Sampling, sampling_for
from rlhfctl.labels.items import Item, write_items
from rlhfctl.models.architecture import context_of
from rlhfctl.paths import StageId
from rlhfctl.recipe.schema import Ppo, Sample
from rlhfctl.recipe.sections.scorers import REWARD_MODEL
from rlhfctl.rewards.build import Resources, build_scorer
from rlhfctl.rewards.ensemble import EnsembleReward, preference_variance
from rlhfctl.rewards.episode import Episode
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
    del drawing, writers, models, first  # the reward model may need their memory
    items = _chosen(items, section, ctx)
    if not items:
        raise DataError(
            "the model answers every prompt with one response again and again: there is nothing to compare",
            where="sample.temperature",
            fix="raise it",
        )
    write_items(ctx.folder / ITEMS, items)
    metrics: dict[str, float] = {"items": len(items), "responses": sum(len(item.responses) for item in items)}
    if differ := [item.disagreement for item in items if item.disagreement is not None]:
        metrics["disagreement"] = statistics.fmean(differ)
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
    """Return the places of this round's prompts in the training split: other ones in each round, while there are.

    With `sample.candidates` those of its candidates, at most `available` as long as these are enough.
    """
    number = StageId.parse(ctx.name).round
    asked = _questions(section, ctx)
    counts = [
        count if index == 0 or section.candidates == 1 else max(count, min(count * section.candidates, available))
        for index, count in enumerate(asked)
    ]
    before, count = sum(counts[: number - 1]), counts[number - 1]
    if number > 1 and section.candidates > 1 and count < asked[number - 1] * section.candidates:
        ctx.note(f"there are {available} training prompts: {count} candidates for {asked[number - 1]} questions")
    if number == 1 and sum(counts) > available:
        ctx.note(
            f"there are {available} training prompts for {sum(counts)} questions: some are asked again, with other "
            "responses"
        )
    order: list[int] = []
    while len(order) < before + count:
        again = len(order) // available
        order += random.Random(f"questions {ctx.recipe.data_seed} {again}").sample(range(available), available)
    return order[before : before + count]


def _report(ctx: Context, total: int, step: int) -> None:
    ctx.emit(Progress(stage=ctx.name, step=step, total=total, unit="response"))


def _questions(section: Sample, ctx: Context) -> list[int]:
    """Return how many questions are asked in each round."""
    rounds = ctx.recipe.rounds
    return rounds.questions(section.prompts) if rounds is not None else [section.prompts]


def _chosen(items: list[Item], section: Sample, ctx: Context) -> list[Item]:
    """Keep the questions on which the members of the last round's reward model differ most, in their order."""
    if section.candidates == 1:
        return items
    source = ctx.parents.get("reward")
    if source is None:
        ctx.note("in the first round there is no reward model that could choose among candidates")
        return items
    loaded = ctx.loader.load_scoring_model(source)
    scorer = build_scorer(
        REWARD_MODEL,
        replace(Resources.of(ctx.recipe), warn=ctx.warn, reward_model=lambda: loaded),
    )
    if not isinstance(scorer, EnsembleReward):
        raise HandoffError(
            "the reward model of the round before is one model, whose members cannot differ",
            where=source.name,
            fix="train it again with reward.members above 1, or leave sample.candidates out",
        )
    scorer([Episode([], [], item.prompt, one, {"tools": item.tools}) for item in items for one in item.responses])
    judged, start = [], 0
    for item in items:
        end = start + len(item.responses)
        found = preference_variance([scores[start:end] for scores in scorer.by_member])
        judged.append(replace(item, disagreement=found))
        start = end
    count = _questions(section, ctx)[StageId.parse(ctx.name).round - 1]
    places = sorted(range(len(judged)), key=lambda place: (-(judged[place].disagreement or 0.0), place))[:count]
    kept = [judged[place] for place in sorted(places)]
    means = [statistics.fmean(one.disagreement or 0.0 for one in group) for group in (judged, kept) if group]
    if kept:
        ctx.note(
            f"{len(kept)} of {len(judged)} candidates are asked, on which the {len(scorer.members)} members differ "
            f"most: mean variance of the predicted preference {means[1]:.4g}, {means[0]:.4g} over all candidates"
        )
    return kept
