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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhfctl.artifacts import Artifact, Source
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.events import Progress, StageStarted
from rlhfctl.generation import local
from rlhfctl.generation.generator import Generator, Sampling, sampling_for
from rlhfctl.labels.items import FEWEST, Item, make_item, write_items
from rlhfctl.labels.texts import turns_of
from rlhfctl.models.architecture import context_of
from rlhfctl.paths import StageId
from rlhfctl.recipe.schema import Ppo, Sample
from rlhfctl.recipe.sections.scorers import REWARD_MODEL
from rlhfctl.rewards.build import Resources, build_scorer
from rlhfctl.rewards.ensemble import EnsembleReward, preference_variance
from rlhfctl.rewards.episode import Episode, make_episode
from rlhfctl.stages.blocks import Blocks
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import Base

ITEMS = "items.jsonl"
TRIES = 4  # draws of a response that is empty or equals another one of its prompt, the first included
_STREAM = 3 << 32  # a stream of random numbers that neither training, evaluation nor the card's pool uses


@dataclass(frozen=True)
class _Writer:
    """A model that writes responses. `origin` is recorded and never shown to annotators."""

    origin: str
    base: Base


def run(section: Sample, ctx: Context, generate: Generator = local.sample) -> Artifact:
    """Sample the labelling set of this round, and publish it."""
    # 1. The models, and the prompts of this round.
    writers = [_Writer(origin, ctx.loader.load_base(source)) for origin, source in _sources(section, ctx).items()]
    tokenizer, context = writers[0].base.tokenizer, context_of(writers[0].base.model.config)
    sampling = _sampling(section, ctx, writers[0].base)
    rows, prompts = encode_prompts(
        ctx.data["prompts"].split.train, tokenizer, context, sampling.max_new_tokens, ctx.recipe.data, ctx.warn
    )
    chosen = _prompts_of_the_round(section, len(rows), ctx)
    rows, prompts = [rows[index] for index in chosen], [prompts[index] for index in chosen]

    # 2. Responses, each prompt's different from each other.
    total = len(rows) * section.responses
    settings: dict[str, Any] = {"prompts": len(rows), "responses": section.responses}
    settings |= {"models": [one.origin for one in writers], "temperature": sampling.temperature}
    settings |= {"max_new_tokens": sampling.max_new_tokens}
    done = _done(total, ctx)
    ctx.emit(StageStarted(stage=ctx.name, total_steps=total, resumed_from=done, settings=settings))
    drawn = _Drawing(section, writers, rows, prompts, sampling, generate, ctx).draw()

    # 3. Items: a prompt with its responses.
    del writers
    items = _chosen(list(_items(rows, drawn, ctx)), section, ctx)
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


def _done(total: int, ctx: Context) -> int | None:
    """Return the number of responses that an attempt before has drawn in its first pass; None for a new attempt."""
    found = sum(Blocks(folder, []).size() for folder in sorted((ctx.work / "samples").glob("try-1-*")))
    return min(found, total) or None


@dataclass
class _Drawing:
    """Draw the responses of all prompts: response j of prompt i is written by the models in turn."""

    section: Sample
    writers: Sequence[_Writer]
    rows: Sequence[Row]
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    generate: Generator
    ctx: Context

    def draw(self) -> list[dict[int, tuple[Any, str]]]:
        """Return, per prompt, the response (text or messages) and its origin by its number."""
        found: list[dict[int, tuple[Any, str]]] = [{} for _ in self.rows]
        count = len(self.rows) * self.section.responses
        for attempt in range(1, TRIES + 1):
            missing = [
                (index, number)
                for number in range(self.section.responses)
                for index in range(len(self.rows))
                if number not in found[index]
            ]
            drawn: dict[tuple[int, int], tuple[Any, str]] = {}
            for place, writer in enumerate(self.writers):
                own = [one for one in missing if sum(one) % len(self.writers) == place]
                drawn |= self._draw(attempt, place, writer, own, count - len(missing) + len(drawn))
            # In the order of the places, so that who wrote the first of two equal responses depends on nothing else.
            for index, number in missing:
                response, origin = drawn[index, number]
                if any(turn.text.strip() for turn in turns_of(response)) and response not in [
                    other for other, _ in found[index].values()
                ]:
                    found[index][number] = response, origin
            if all(len(one) == self.section.responses for one in found):
                break
        return found

    def _draw(
        self, attempt: int, place: int, writer: _Writer, own: Sequence[tuple[int, int]], before: int
    ) -> dict[tuple[int, int], tuple[Any, str]]:
        """Draw the responses of one model at its places; `before` responses are there already."""
        # A later attempt draws with other numbers: that of the response plus K for each attempt.
        numbered = [(index, number + (attempt - 1) * self.section.responses) for index, number in own]
        blocks = Blocks(self.ctx.work / "samples" / f"try-{attempt}-{place}", numbered)
        total = len(self.rows) * self.section.responses

        def report(step: int) -> None:
            done = min(before + step, total)
            self.ctx.emit(Progress(stage=self.ctx.name, step=done, total=total, unit="response"))

        tokenizer = writer.base.tokenizer
        what = "sampling responses" if attempt == 1 else "sampling again what was equal or empty"
        found = blocks.draw(writer.base.model, tokenizer, self.prompts, self.sampling, self.generate, report, what=what)
        made: dict[tuple[int, int], tuple[Any, str]] = {}
        for (index, number), (ids, _) in zip(own, found, strict=True):
            episode = make_episode(tokenizer, self.rows[index], self.prompts[index], ids, self.sampling.stop_strings)
            made[index, number] = episode.completion, writer.origin
        return made


def _items(rows: Sequence[Row], drawn: Sequence[Mapping[int, tuple[Any, str]]], ctx: Context) -> Iterator[Item]:
    """Make the items; report prompts with too few different responses."""
    most = max(map(len, drawn), default=0)
    fewer: Counter[int] = Counter(len(found) for found in drawn if len(found) < most)
    for row, found in zip(rows, drawn, strict=True):
        if len(found) >= FEWEST:
            both = [found[number] for number in sorted(found)]
            responses, origins = [one for one, _ in both], [origin for _, origin in both]
            yield make_item(row["prompt"], responses, origins, tools=row.get("tools"))
    for count, times in sorted(fewer.items()):
        left_out = " and are left out" if count < FEWEST else ""
        ctx.note(f"{times} prompts have {count} different responses{left_out}: further draws were equal or empty")
