"""Shift and scale a trained reward so that its zero has a meaning: `reward.normalize`.

`demonstrations`: the mean score of the training demonstrations becomes 0 (Ouyang et al. 2022, section 3.5).
`reference`: scores of base*'s own samples get mean 0 and variance 1 (Ziegler et al. 2019, section 2). They answer
training prompts of data.prompts, without that data set the prompts of the training pairs; never a test prompt. They are
sampled as PPO samples at its first step, and depend on the seed alone.

The result lies in the scalar head (models/head_bias.py) before it is measured, recorded and saved, so PPO, the card,
the comparison and the export all see it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder
from rlhfctl.data.fitting import encode_prompts, longest_row
from rlhfctl.data.splits import prompts_of
from rlhfctl.data.types import PreferenceGroup, Row
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.generation import local
from rlhfctl.generation.generator import sampling_for
from rlhfctl.models import build, devices, head_bias, loading, scoring
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.schema import Ppo, Reward
from rlhfctl.rewards.episode import make_episode
from rlhfctl.rewards.model import ModelReward
from rlhfctl.stages import probes
from rlhfctl.stages.context import Context

SAMPLES = 256  # of base*: the mean of their scores is known to 1/16 of their standard deviation
_STREAM = 3 << 32  # random numbers that neither training, evaluation nor the card's pool uses
_PER_SAMPLE = 1 << 32  # numbers of episodes per sample: prompt i of sample j is episode j * this + i


def normalize(
    section: Reward,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    groups: Iterable[PreferenceGroup],
    ctx: Context,
) -> None:
    """Normalize the trained reward `model` in place as `section.normalize` says; do nothing without it.

    `max_length`: demonstrations with more tokens are left out. `groups`: the training pairs.
    """
    if section.normalize is None:
        return
    if section.normalize == "demonstrations":
        scores = _demonstration_scores(model, tokenizer, max_length, ctx)
        shift = -statistics.fmean(scores)
        head_bias.transform(model, 1.0, shift)
        ctx.note(f"the reward is shifted by {shift:+.4g}: the mean score of {len(scores)} demonstrations is 0")
        return
    scores = _reference_scores(model, tokenizer, groups, ctx)
    mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
    if spread == 0:
        raise RlhfctlError(
            f"the reward model gives all {len(scores)} samples of base* the same score ({mean:.4g}), which no scale "
            "brings to variance 1",
            where="reward.normalize",
            fix="use demonstrations, or train the reward model longer",
        )
    head_bias.transform(model, 1 / spread, -mean / spread)
    ctx.note(
        f"the reward is divided by {spread:.4g} and shifted by {-mean / spread:+.4g}: the scores of {len(scores)} "
        "samples of base* have mean 0 and variance 1"
    )


def _demonstration_scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None, ctx: Context
) -> list[float]:
    """Score the demonstrations as the reward model reads responses: whole, with their end token."""
    encoder = Encoder(tokenizer)
    rows = [encoder.demonstration(row)["input_ids"] for row in ctx.data["demonstrations"].rows]
    limit, name = longest_row(max_length, context_of(model.config))
    kept = [row for row in rows if limit is None or len(row) <= limit]
    if len(kept) < len(rows):
        ctx.warn(
            f"{len(rows) - len(kept)} of {len(rows)} demonstrations are longer than {name} tokens and do not count in "
            "the mean that becomes 0"
        )
    if not kept:
        raise DataError(f"no demonstration fits into {name} tokens", where="reward.trainer.max_length", fix="raise it")
    scores = scoring.score_rows(model, kept, tokenizer.pad_token_id, what="scoring the demonstrations")
    probes.require_finite(scores, ctx.name, "scores")
    return scores


def _reference_scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, groups: Iterable[PreferenceGroup], ctx: Context
) -> list[float]:
    """Sample SAMPLES responses with base*, the prompts in turn, and score them as PPO does."""
    home = next(model.parameters()).device
    if not loading.is_quantized(model):  # one model at a time on the accelerator; quantized layers stay where they are
        model.to("cpu")
    base = ctx.loader.load_base(ctx.parents["base"], check=False, to_train=True)
    sampling = sampling_for(ctx.recipe.ppo or Ppo(temperature=1.0), tokenizer, seed=ctx.recipe.seed, stream=_STREAM)
    limit, new = context_of(base.model.config), sampling.max_new_tokens
    given = _training_prompts(groups, ctx)[:SAMPLES]
    rows, prompts = encode_prompts(given, tokenizer, limit, new, ctx.recipe.data, ctx.warn)
    places = [(number % len(rows), number // len(rows)) for number in range(SAMPLES)]
    drawn = local.sample(
        base.model if ctx.divides else build.to_device(base.model),
        [prompts[index] for index, _ in places],
        tokenizer,
        sampling,
        episodes=[number * _PER_SAMPLE + index for index, number in places],
        what="sampling base*",
    )
    del base
    devices.release_memory()
    if not loading.is_quantized(model):
        model.to(home)
    episodes = [
        make_episode(tokenizer, rows[index], prompts[index], response.ids, sampling.stop_strings)
        for (index, _), response in zip(places, drawn, strict=True)
    ]
    scores = ModelReward(model, tokenizer.pad_token_id, say=ctx.warn)(episodes)
    probes.require_finite(scores, ctx.name, "scores")
    return scores


def _training_prompts(groups: Iterable[PreferenceGroup], ctx: Context) -> Sequence[Row]:
    """Return the prompts that PPO will train on; without data.prompts those of the training pairs."""
    return ctx.data["prompts"].split.train if "prompts" in ctx.data else prompts_of(list(groups))
