"""Choose which checkpoint of sft becomes base*: the one whose samples have the highest mean score (`sft.choose`).

    weights after every N steps ──▶ one sample to each eval prompt ──▶ scorer ──▶ best so far? ──▶ kept

Ouyang et al. 2022 (section 3.5) choose their supervised models so, by the score of a reward model. A part of the sft
stage. Candidates share prompts and random numbers, so that they differ by their weights alone. `by: heldout_loss` reads
held-out demonstrations instead of samples (heldout_loss.py). The record of what was tried and the best weights lie in
the stage's work folder: a stage that was killed goes on with them. Leaves out when a candidate is due
(training/trl/callback.py).
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.artifacts import read_json
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.errors import RewardFailed
from rlhfctl.events import Metrics, Sample, transcript
from rlhfctl.generation.generator import Sampling, sampling_for
from rlhfctl.generation.local import sample
from rlhfctl.generation.shares import in_shares
from rlhfctl.models import build, sharding
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Choose, Ppo
from rlhfctl.recipe.sections.scorers import HELDOUT_LOSS, model_in
from rlhfctl.rewards.build import Resources, build_scorer
from rlhfctl.rewards.episode import logged_means, make_episode
from rlhfctl.stages.context import Context
from rlhfctl.stages.heldout_loss import HeldoutLoss
from rlhfctl.stages.loader import load_named_model
from rlhfctl.stats.effect import standard_error

CHOICE = "choice.json"
_STREAM = 5 << 32  # a stream of random numbers that no other sampling uses


@dataclass(frozen=True)
class Candidate:
    """The weights after one step: a score per eval prompt (or held-out row), and what the samples are like."""

    step: int
    scores: list[float]
    samples: dict[str, float]  # further metrics

    @property
    def score(self) -> float:
        return statistics.fmean(self.scores)

    def values(self) -> dict[str, float]:
        """Return the metrics of this candidate."""
        return {"eval_score": self.score, "eval_score_se": standard_error(self.scores), **self.samples}


Measure = Callable[[Any, int], tuple[list[float], dict[str, float], Sample | None]]
"""Function of weights and their step that gives scores, further metrics, and a sample to show."""


def choice_for(
    section: Choose,
    ctx: Context,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    heldout: HeldoutLoss | None = None,
) -> Choice:
    """Make the choice that `section` asks for; `context`: tokens that the model can read, `heldout`: held-out rows."""
    if section.by == HELDOUT_LOSS:
        assert heldout is not None  # required by the recipe's rules
        return Choice(section.by, section.every, partial(_losses, heldout), ctx)
    return Choice(section.by, section.every, SampleScores(section, ctx, tokenizer, context), ctx)


def _losses(heldout: HeldoutLoss, model: Any, step: int) -> tuple[list[float], dict[str, float], None]:
    scores = heldout.as_scores(model)
    return scores, {"eval_loss": -statistics.fmean(scores)}, None


class SampleScores:
    """Let weights answer the eval prompts, and a scorer score the answers."""

    def __init__(self, section: Choose, ctx: Context, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
        self.tokenizer = tokenizer
        self.stage = ctx.name
        self.sampling = _sampling(section, ctx, tokenizer)
        length, split = self.sampling.max_new_tokens, ctx.data["prompts"].split
        self.rows, self.prompts = encode_prompts(split.eval, tokenizer, context, length, ctx.recipe.data, ctx.warn)
        resources = replace(
            Resources.of(ctx.recipe),
            batch_size=section.batch_size,
            function_batch_size=section.batch_size,
            warn=ctx.warn,
            processes=Processes.here(),
            models=partial(load_named_model, ctx.loader, ctx.recipe, tokenizer),
        )
        self.scorer = build_scorer(section.by, resources)
        if ctx.divides and model_in(section.by) is not None:
            ctx.note(f"{section.by} is whole in every process: launch.shard divides the model that is trained")

    def __call__(self, model: Any, step: int) -> tuple[list[float], dict[str, float], Sample]:
        draw, what = in_shares(sample, Processes.here()), f"sampling the candidate of step {step}"
        responses = draw(model, self.prompts, self.tokenizer, self.sampling, what=what)
        episodes = [
            make_episode(self.tokenizer, row, prompt, response.ids, self.sampling.stop_strings)
            for row, prompt, response in zip(self.rows, self.prompts, responses, strict=True)
        ]
        scores = [float(score) for score in self.scorer(episodes)]
        metrics = {
            "eval_length": statistics.fmean(len(response.ids) for response in responses),
            "eval_eos_rate": statistics.fmean(response.ended for response in responses),
        }
        metrics |= {f"eval_{name}": mean for name, mean in logged_means(self.scorer).items()}
        prompt, response = transcript(episodes[0].prompt), transcript(episodes[0].completion)
        shown = {"score": scores[0]}
        return scores, metrics, Sample(stage=self.stage, step=step, prompt=prompt, response=response, scores=shown)


class Choice:
    """Score the weights that training passes through, and keep the best ones. It is called after a step."""

    def __init__(self, by: str, every: int | None, measure: Measure, ctx: Context) -> None:
        self.by = by
        self.every = every
        self.measure = measure
        self.ctx = ctx
        self.processes = Processes.here()
        self.tried: list[Candidate] = self.processes.from_first(self._left)  # another machine has no record

    def __call__(self, model: Any, step: int, total: int, /) -> None:
        """Score the weights of `model` after `step`, unless an attempt that was killed has done so."""
        if any(one.step == step for one in self.tried):
            return
        scores, samples, example = self.measure(model, step)
        if not all(map(math.isfinite, scores)):
            raise RewardFailed(
                f"{self.by} gives scores that are not finite to the candidate of step {step}",
                where="sft.choose.by",
                fix="let it give finite numbers; the same command goes on",
            )
        made = Candidate(step, scores, samples)
        shown = Metrics(stage=self.ctx.name, step=step, total=total, values=made.values(), split="eval")
        self.ctx.emit(shown)
        if example is not None:
            self.ctx.emit(example)
        self._keep(model, made)

    def _keep(self, model: Any, made: Candidate) -> None:
        """Record a candidate; keep its weights if it is the best one, and remove those of the one before."""
        self.tried.append(made)
        better = self.best is made
        weights = sharding.weights_to_save(model) if better else None
        if not self.processes.first:
            return
        if better:
            with fs.publish_folder(self._folder(made)) as folder:
                build.save_weights(model, folder, weights)
        fs.write_json(self.ctx.work / CHOICE, {"tried": [vars(one) for one in self.tried]})
        for folder in self.ctx.work.glob("chosen-*"):
            if folder != self._folder(self.best):
                shutil.rmtree(folder)

    def _left(self) -> list[Candidate]:
        """Read what a killed attempt has tried; nothing if the best weights are not there."""
        record = self.ctx.work / CHOICE
        found = [Candidate(**one) for one in read_json(record)["tried"]] if record.is_file() else []
        return found if found and self._folder(best_of(found)).is_dir() else []

    @property
    def best(self) -> Candidate:
        """The best candidate so far."""
        return best_of(self.tried)

    def _folder(self, candidate: Candidate) -> Path:
        return self.ctx.work / f"chosen-{candidate.step}"

    def settle(self, model: Any) -> dict[str, float]:
        """Load the best weights into the trained `model`, and write choice.json. Returns metrics of the choice.

        The first process alone does this: it has the weights, and publishes them.
        """
        best, last = self.best, max(self.tried, key=lambda one: one.step)
        if best is not last:
            build.load_weights(model, self._folder(best))
        rows = [{"step": one.step, **one.values(), "chosen": one is best} for one in self.tried]
        fs.write_atomic(self.ctx.folder / CHOICE, "".join(json.dumps(row) + "\n" for row in rows))
        self.ctx.note(self._told(best, last))
        if len(self.tried) == 1:
            self.ctx.warn(f"sft.choose had one candidate, the last step ({last.step}): lower sft.choose.every")
        elif len({one.score for one in self.tried}) == 1:
            self.ctx.warn(f"{self.by} tells no candidates apart, all score {best.score:.4g}: the last is handed over")
        return {"chosen_step": best.step, "chosen_score": best.score, "last_score": last.score}

    def _told(self, best: Candidate, last: Candidate) -> str:
        count = len(self.tried)
        if best is last:
            return f"the last of {count} candidates scores best ({best.score:.4g} by {self.by}): it is handed over"
        gains = [one - other for one, other in zip(best.scores, last.scores, strict=True)]
        return (
            f"of {count} candidates that of step {best.step} scores best ({best.score:.4g} by {self.by}): it is handed "
            f"over; it is {statistics.fmean(gains):.3g} (standard error {standard_error(gains):.2g}) above the last, "
            "and the best of noisy scores is a little too high"
        )


def best_of(tried: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest mean score, the latest of equal ones."""
    return max(tried, key=lambda one: (one.score, one.step))


def _sampling(section: Choose, ctx: Context, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """Return PPO's settings of sampling, with those of this section in their place."""
    found = sampling_for(ctx.recipe.ppo or Ppo(temperature=1.0), tokenizer, seed=ctx.recipe.seed, stream=_STREAM)
    return replace(
        found,
        temperature=section.temperature or found.temperature,
        max_new_tokens=section.max_new_tokens or found.max_new_tokens,
        batch_size=section.batch_size,
    )
