"""Evaluate the policy during PPO: every N updates sample the eval prompts, score, log, and remember the best policy.

Gold scores are logged where the task has them, and decide nothing. With `use: best` the best policy is the one with the
highest held-out reward on these prompts, or, without a held-out reward model, with the highest score - kl_coef x KL;
`best_kl_limit` leaves out policies that are further from the reference. The ppo stage uses it with either engine.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RewardFailed
from rlhfctl.events import Metrics, Sample, transcript
from rlhfctl.generation.generator import Generator, sampling_for
from rlhfctl.generation.kl import exact_kl
from rlhfctl.generation.local import sample
from rlhfctl.generation.shares import in_shares
from rlhfctl.models import build, sharding
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.ensemble import disagreement_metric
from rlhfctl.rewards.episode import Episode, RewardFunction, logged_means, make_episode, part_means, parts_of
from rlhfctl.rewards.unit_tests import outcome_metrics
from rlhfctl.stages.context import Context
from rlhfctl.stats.effect import standard_error
from rlhfctl.stats.overoptimization import best_evaluation
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.roles import Roles

_SAMPLES_SHOWN = 1
_STREAM = 1 << 32  # a stream of random numbers that training does not use


class Evaluation:
    """Evaluate the policy after an update; `data` holds the eval prompts.

    Several processes divide the prompts, get all numbers, and so choose the same best policy.
    """

    def __init__(
        self,
        section: Ppo,
        ctx: Context,
        roles: Roles,
        reward: RewardFunction,
        data: PromptData,
        heldout: RewardFunction | None = None,
        generator: Generator = sample,
        processes: Processes = ALONE,
    ) -> None:
        self.section = section
        self.ctx = ctx
        self.policy = roles.policy
        self.reference = roles.reference
        self.reward = reward
        self.heldout = heldout
        self.tokenizer = data.tokenizer
        self.rows = data.rows
        self.prompts = data.prompts
        self.generator = in_shares(generator, processes)
        self.processes = processes
        self.closing: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        self.best_values: dict[str, float] = {}
        self._checkpointed_best: Path | None = None  # the best policy's folder that the last checkpoint refers to
        self._references: list[str] = []  # the reference's responses, for the samples shown
        self._reference_scores: list[float] = []
        self._sampling = sampling_for(section, data.tokenizer, seed=ctx.recipe.seed, stream=_STREAM)

    def __call__(self, update: int, total: int) -> None:
        section = self.section
        every = section.eval.every
        if not every or not self.prompts or (update % every and update != total):
            return
        what = "answering the eval prompts"
        responses = self.generator(self.policy, self.prompts, self.tokenizer, self._sampling, what=what)
        ids = [response.ids for response in responses]
        episodes = [
            make_episode(self.tokenizer, row, prompt, response, self._sampling.stop_strings)
            for row, prompt, response in zip(self.rows, self.prompts, ids, strict=True)
        ]
        scores = self._finite(self.reward(episodes), episodes, update, parts=parts_of(self.reward))
        parts, uncertain = parts_of(self.reward), disagreement_metric(self.reward) | outcome_metrics(self.reward)
        uncertain |= logged_means(self.reward)
        kl = self._kl(ids)
        values = {
            "eval_score": statistics.fmean(scores),
            "eval_score_se": standard_error(scores),
            "eval_kl": statistics.fmean(kl),
            "eval_objective": statistics.fmean(scores) - section.kl_coef * statistics.fmean(kl),
            "eval_length": statistics.fmean(len(response) for response in ids),
            "eval_eos_rate": statistics.fmean(response.ended for response in responses),
        }
        if gold := self._gold([episode.prompt for episode in episodes], [episode.completion for episode in episodes]):
            values["eval_gold"] = statistics.fmean(gold)
        others: list[float] = []
        if self.heldout is not None:
            others = self._finite(self.heldout(episodes), episodes, update, "eval-heldout")
            values |= {"eval_heldout": statistics.fmean(others), "eval_heldout_se": standard_error(others)}
        values |= {f"eval_{name}": mean for name, mean in (part_means(parts) | uncertain).items()}
        self.closing = values
        self.ctx.emit(Metrics(stage=self.ctx.name, step=update, total=total, values=values, split="eval"))
        if update == 0:
            self._references = [transcript(episode.completion) for episode in episodes[:_SAMPLES_SHOWN]]
            self._reference_scores = scores[:_SAMPLES_SHOWN]
        for index in range(min(_SAMPLES_SHOWN, len(episodes))):
            self.ctx.emit(
                Sample(
                    stage=self.ctx.name,
                    step=update,
                    prompt=transcript(episodes[index].prompt),
                    response=transcript(episodes[index].completion),
                    reference=self._references[index] if self._references else None,
                    scores={"score": scores[index]}
                    | ({"heldout": others[index]} if others else {})
                    | {name: score for name, part in parts.items() if (score := part[index]) is not None},
                    reference_scores={"score": self._reference_scores[index]} if self._reference_scores else {},
                )
            )
        if section.use == "best" and self._is_best(values):
            self.best = (values[self.chosen_by], update)
            self.best_values = values
            self.policy.activate()
            weights = sharding.weights_to_save(self.policy.model)
            if not self.processes.first:
                return
            with fs.publish_folder(self._folder(update)) as folder:
                build.save_weights(self.policy.model, folder, weights)

    @property
    def chosen_by(self) -> str:
        """The metric by which the best policy is chosen."""
        return "eval_objective" if self.heldout is None else "eval_heldout"

    def _is_best(self, values: dict[str, float]) -> bool:
        """Tell whether this evaluation is better than the best one before."""
        candidates = [self.best_values, values] if self.best is not None else [values]
        points = [(one["eval_kl"], one[self.chosen_by]) for one in candidates]
        return best_evaluation(points, self.section.best_kl_limit) == len(points) - 1

    def _finite(
        self,
        scores: list[float],
        episodes: Sequence[Episode],
        update: int,
        name: str = "eval",
        *,
        parts: Mapping[str, Sequence[float | None]] = MappingProxyType({}),
    ) -> list[float]:
        """Replace scores that are not finite by the mean of the others; warn, and keep the responses in non-finite/.

        Raises RewardFailed if no score is finite.
        """
        good = [score for score in scores if math.isfinite(score)]
        if len(good) == len(scores):
            return scores
        kept = self.ctx.folder / "non-finite" / f"{name}-update-{update:06d}.jsonl"
        kept.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"prompt": episode.prompt, "response": episode.completion, "score": score}
            | ({"reward_parts": {part: values[index] for part, values in parts.items()}} if parts else {})
            for index, (episode, score) in enumerate(zip(episodes, scores, strict=True))
        ]
        fs.write_atomic(kept, "".join(fs.json_line(row) + "\n" for row in rows))
        what = (
            f"{len(scores) - len(good)} of {len(scores)} eval responses have a score that is not finite, kept in {kept}"
        )
        if not good:
            raise RewardFailed(what, where=f"evaluation at update {update}", fix="let the reward give finite numbers")
        self.ctx.warn(f"update {update}: {what}; the others are evaluated")
        return [score if math.isfinite(score) else statistics.fmean(good) for score in scores]

    def _kl(self, responses: list[list[int]]) -> list[float]:
        pad, temperature = self.tokenizer.pad_token_id, self.section.temperature

        def own(indices: list[int]) -> list[float]:
            prompts, answers = [self.prompts[i] for i in indices], [responses[i] for i in indices]
            return exact_kl(self.policy, self.reference, prompts, answers, pad, temperature=temperature)

        return self.processes.over(range(len(responses)), own)

    def _gold(self, prompts: list[Any], completions: list[Any]) -> list[float]:
        source = self.ctx.recipe.data.prompts
        if source is None or not source.has_gold:
            return []
        from rlhfctl.world import gold

        return gold.score(prompts, completions)

    def _folder(self, update: int) -> Path:
        return self.ctx.work / f"best-{update}"

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint; delete weights that neither it nor the checkpoint before refers to."""
        now = self._folder(self.best[1]) if self.best is not None else None
        for folder in self.ctx.work.glob("best-*"):
            if folder not in (now, self._checkpointed_best):
                shutil.rmtree(folder)
        self._checkpointed_best = now
        return {
            "closing": self.closing,
            "best": self.best,
            "best_values": self.best_values,
            "references": self._references,
            "reference_scores": self._reference_scores,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `state()` returned."""
        self.closing, self.best_values = state["closing"], state["best_values"]
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self._references = state["references"]
        self._reference_scores = state.get("reference_scores", [])  # older checkpoints do not have it
        self._checkpointed_best = self._folder(self.best[1]) if self.best is not None else None

    def restore_best(self) -> float:
        """Load the weights of the best policy into the model; return the update that they are from."""
        assert self.best is not None
        value, update = self.best
        what = "objective" if self.heldout is None else "held-out reward"
        build.load_weights(self.policy.model, self._folder(update))
        self.closing = self.best_values  # the manifest describes the policy that later stages load
        self.ctx.note(
            f"the best policy on the eval prompts is that of update {update} ({what} {value:.4g}): it is used"
        )
        return float(update)
