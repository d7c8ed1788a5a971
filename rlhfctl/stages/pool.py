"""Sample the pool of responses that the reward model's card chooses from: base* answers the eval prompts many times.

Samples like PPO at its first step: the same settings, prompts of the same length. A response depends on the seed, the
prompt and its number alone, so neither batch size nor a kill changes it. Blocks of responses are kept in the stage's
work folder, and an attempt that was killed goes on after the last whole block. Never reads test prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhfctl.data.fitting import encode_prompts
from rlhfctl.data.splits import prompts_of
from rlhfctl.data.types import Row
from rlhfctl.events import Progress, StageStarted
from rlhfctl.generation import local
from rlhfctl.generation.generator import Generator, Sampling, sampling_for
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.schema import Card, Ppo, Source
from rlhfctl.rewards.episode import Episode, make_episode
from rlhfctl.stages.blocks import Blocks
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import Base

_STREAM = 2 << 32  # a stream of random numbers that neither training nor evaluation uses


@dataclass(frozen=True)
class Pool:
    """`episodes[i][j]` is response j to prompt i, and `ended[i][j]` tells whether it ended by itself.

    `source`: the section of the data set that the prompts are from.
    """

    episodes: list[list[Episode]]
    ended: list[list[bool]]
    source: Source | None

    @property
    def flat(self) -> list[Episode]:
        """All episodes, those of the first prompt first."""
        return [episode for samples in self.episodes for episode in samples]


def draw(section: Card, base: Base, ctx: Context, generate: Generator = local.sample) -> Pool:
    """Sample `section.samples` responses to each prompt with base*; resume after the blocks that are there already."""
    sampling = _sampling(ctx, base)
    rows, prompts = _prompts(section, base, sampling, ctx)
    places = [(index, number) for number in range(section.samples) for index in range(len(rows))]
    blocks = Blocks(ctx.work / "pool", places)
    settings: dict[str, Any] = {"prompts": len(rows), "samples": section.samples}
    settings |= {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
    started = StageStarted(stage=ctx.name, total_steps=len(places), resumed_from=blocks.done or None, settings=settings)
    ctx.emit(started)

    def report(step: int) -> None:
        ctx.emit(Progress(stage=ctx.name, step=step, total=len(places), unit="response"))

    found = blocks.draw(base.model, base.tokenizer, prompts, sampling, generate, report, what="sampling the pool")
    episodes: list[list[Episode]] = [[] for _ in rows]
    ended: list[list[bool]] = [[] for _ in rows]
    for (index, _), (ids, end) in zip(places, found, strict=True):
        episodes[index].append(make_episode(base.tokenizer, rows[index], prompts[index], ids, sampling.stop_strings))
        ended[index].append(end)
    return Pool(episodes, ended, _source(ctx))


def _sampling(ctx: Context, base: Base) -> Sampling:
    """Return PPO's settings of sampling (its defaults at temperature 1 without a ppo section)."""
    section = ctx.recipe.ppo or Ppo(temperature=1.0)
    return sampling_for(section, base.tokenizer, seed=ctx.recipe.seed, stream=_STREAM)


def _prompts(section: Card, base: Base, sampling: Sampling, ctx: Context) -> tuple[Sequence[Row], Sequence[list[int]]]:
    """Return the prompts to answer: eval prompts, or those of the held-out pairs; reports where they are fewer."""
    rows, what = _eval_rows(ctx), "eval prompts"
    if not rows:
        rows, what = prompts_of(ctx.data["preferences"].split.heldout), "prompts of held-out pairs"
        ctx.note("there are no eval prompts (data.prompts.eval): the pool answers the prompts of the held-out pairs")
    limit = context_of(base.model.config)
    kept, ids = encode_prompts(rows, base.tokenizer, limit, sampling.max_new_tokens, ctx.recipe.data, ctx.warn)
    if len(kept) < section.prompts:
        ctx.note(f"the pool has all {len(kept)} {what}; reward.card.prompts would take up to {section.prompts}")
    return kept[: section.prompts], ids[: section.prompts]


def _source(ctx: Context) -> Source | None:
    prompts = ctx.recipe.data.prompts
    if prompts is None or not _eval_rows(ctx):
        return ctx.recipe.data.preferences
    return prompts.eval_source or prompts


def _eval_rows(ctx: Context) -> list[Row]:
    return list(ctx.data["prompts"].split.eval) if "prompts" in ctx.data else []
