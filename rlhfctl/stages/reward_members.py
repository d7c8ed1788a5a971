"""Train the members of a reward ensemble, one after the other, and bring them together in the stage's folder.

    base* ──┬─▶ member 0: a bootstrap of the training prompts, the recipe's seed ──▶ adapter/,  probes.json
            ├─▶ member 1: another bootstrap, another seed ──────────────────────────▶ member-1/ (with probes.json)
            └─▶ ...

Each member is an adapter with a scalar head on the same base*. A finished member lies in work/finished/ until all are
there, so a stage that was killed between two members goes on with the next. The stage's own module (reward.py) gives
the functions that train and measure one model. Coste et al. (2023) give the idea; their members differ by seed alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.artifacts import read_json
from rlhfctl.data.encoding import EncodedGroup
from rlhfctl.data.splits import bootstrap
from rlhfctl.data.store import pick
from rlhfctl.events import Event, Metrics, Progress, StageStarted
from rlhfctl.models import adapters, build, tokenizing
from rlhfctl.recipe.schema import Reward
from rlhfctl.recipe.sections.seeds import LARGEST_SEED
from rlhfctl.rewards.ensemble import aggregated, disagreements
from rlhfctl.stages import probes
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import recorded_base

_MEMBER_SEED = 10_007  # between the seeds of two members: far from the seeds that people give to repeated runs
_FINISHED = "finished"
_RESULT = "member.json"  # in a finished member's folder in work/: its metrics and its held-out scores

Emit = Callable[[Event], None]


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a member's new weights and order of pairs; the first member has that of the recipe."""
    return (seed + number * _MEMBER_SEED) % (LARGEST_SEED + 1)


def layout(count: int) -> dict[str, Any]:
    """Return what the manifest records of `count` members beside the first: their folders, and how many there are."""
    return {"members": count, **{f"member-{number}": f"member-{number}" for number in range(1, count)}}


@dataclass(frozen=True)
class Members:
    """The members of the ensemble of one reward stage.

    `train(model, number, groups, emit, work)` trains one and returns (model, metrics). `scores(model)` scores the
    held-out pairs. `probe(model, folder)` records scores in `folder`.
    """

    section: Reward
    ctx: Context
    seed: int
    train: Callable[[Any, int, Sequence[EncodedGroup], Emit, Path], tuple[Any, dict[str, float]]]
    scores: Callable[[Any], list[float]]
    probe: Callable[[Any, Path], None]

    def make(
        self, groups: Sequence[EncodedGroup], tokenizer: PreTrainedTokenizerBase, base_path: str
    ) -> tuple[dict[str, float], list[float]]:
        """Train those that are not finished, and publish all. Returns metrics and the mean scores of held-out pairs."""
        count = self.section.members
        results = []
        emit, done = _CountingOn(self.ctx.emit, count), 0  # steps of the members before
        finished = [(self.ctx.work / _FINISHED / f"member-{number}" / _RESULT).is_file() for number in range(count)]
        for number in range(count):
            folder = self._finished(number, by_first=finished[number])
            if not finished[number]:
                emit.number, emit.before = number, done
                self._make_one(number, groups, tokenizer, base_path, folder, emit)
            results.append(read_json(folder / _RESULT))
            done += int(results[-1]["metrics"]["steps"])
        self._publish(finished)
        metrics = {name: fmean(one["metrics"][name] for one in results) for name in results[0]["metrics"]}
        metrics |= {"steps": float(done), "reload_gap": self._reload_gap(tokenizer)}
        scores = [one["scores"] for one in results]
        for number, one in enumerate(scores):
            metrics[f"heldout_accuracy/member-{number}"] = _accuracy(one)
        metrics["reward_disagreement"] = fmean(disagreements(scores))
        metrics["members"] = float(count)
        return metrics, aggregated(scores, "mean")

    def _make_one(
        self,
        number: int,
        groups: Sequence[EncodedGroup],
        tokenizer: PreTrainedTokenizerBase,
        base_path: str,
        folder: Path,
        emit: Emit,
    ) -> None:
        ctx = self.ctx
        model, _, _ = ctx.loader.new_scorer(
            ctx.parents["base"], seed=seed_of(self.seed, number), check=False, head_init=self.section.head_init
        )
        drawn = bootstrap([one.group.prompt for one in groups], ctx.recipe.data_seed, number)
        work = ctx.work / f"member-{number}"
        model, metrics = self.train(model, number, pick(groups, drawn), emit, work)
        scores = self.scores(model)
        ctx.note(
            f"member {number} is trained on {len(set(drawn))} of {len(groups)} rows (a bootstrap of their prompts); on "
            f"the held-out pairs it is right {_accuracy(scores):.0%} of the time"
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with fs.publish_folder(folder) as made:
            recorded = recorded_base(ctx.parents["base"], base_path, ctx.run.root, ctx.name)
            adapters.save_adapter(model, made, base=recorded, head=True)
            tokenizing.save_tokenizer(tokenizer, made)
            self.probe(model, made)
            fs.write_json(made / _RESULT, {"metrics": metrics, "scores": scores})
        if ctx.first:
            shutil.rmtree(work, ignore_errors=True)  # its checkpoints

    def _finished(self, number: int, *, by_first: bool) -> Path:
        """Return the folder of a finished member; of several processes each keeps those that they train together.

        `by_first`: it was finished before this attempt, and lies where the first process keeps its own.
        """
        kept = self.ctx.work if self.ctx.first or by_first else self.ctx.folder
        return kept / _FINISHED / f"member-{number}"

    def _publish(self, finished: Sequence[bool]) -> None:
        """Copy the finished members to their places; the first one's probes lie in the stage's folder itself."""
        for number in range(self.section.members):
            source = self._finished(number, by_first=finished[number])
            with fs.publish_folder(self.ctx.folder / (f"member-{number}" if number else "adapter")) as folder:
                left_out = [_RESULT] if number else [_RESULT, probes.PROBES]
                shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out))
            if number == 0:
                shutil.copyfile(source / probes.PROBES, self.ctx.folder / probes.PROBES)

    def _reload_gap(self, tokenizer: PreTrainedTokenizerBase) -> float:
        """Load each saved member, and measure the largest gap between its scores and the recorded ones."""
        ctx, gaps = self.ctx, []
        for number in range(self.section.members):
            folder = ctx.folder / (f"member-{number}" if number else "adapter")
            model = ctx.loader.scorer_from_adapter(ctx.parents["base"], folder)
            if not ctx.divides:
                build.to_device(model)
            file = (folder if number else ctx.folder) / probes.PROBES
            gaps.append(probes.check_scores(model, tokenizer.pad_token_id, file, ctx.loader.precision))
        return max(gaps)


def _accuracy(scores: Sequence[float]) -> float:
    """Return the share of pairs with the higher score for the chosen response; `scores`: all chosen, all rejected."""
    count = len(scores) // 2
    return sum(chosen > rejected for chosen, rejected in zip(scores[:count], scores[count:], strict=True)) / count


class _CountingOn:
    """Emit the events of a member's training as those of one stage: its steps count on from the members before it.

    The stage starts once, with the first member that this process trains. Members still to come count as many steps as
    the one that trains.
    """

    def __init__(self, emit: Emit, members: int) -> None:
        self.emit = emit
        self.members = members
        self.number = self.before = 0  # the member that trains, and the steps of those before it
        self._started = False

    def __call__(self, event: Event) -> None:
        left = self.members - self.number
        if isinstance(event, StageStarted):
            if self._started:
                return
            self._started = True
            event = replace(
                event,
                total_steps=self.before + left * (event.total_steps or 0),
                resumed_from=self.before + (event.resumed_from or 0) or None,
                settings={**event.settings, "members": self.members},
            )
        elif isinstance(event, Progress | Metrics):
            event = replace(
                event,
                step=self.before + event.step,
                total=None if event.total is None else self.before + left * event.total,
                eta_s=None if event.eta_s is None else event.eta_s * left,
            )
        self.emit(event)
