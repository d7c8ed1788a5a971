"""Ask the judge `endpoint` of a comparison about pairs of responses, and turn its choices into entries of compare.json.

If it is the primary judge, it judges the main comparison and every control, because the verdict rests on all of them;
else the main comparison alone. Per prompt it judges the first `compare.endpoint.samples` pairs: sample i of the policy
with sample i of the reference. The policy's score of a prompt is its mean value v over these pairs, the reference's is
1 - v, so the paired statistics of other judges hold. Prompts without a judged pair are left out of its numbers.

Sends prompts and responses to the address in the recipe. Writes judgements.jsonl, every question with its answer, and
the cache of answers in the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rlhfctl import fs
from rlhfctl.events import transcript
from rlhfctl.judging import client, summary
from rlhfctl.judging.judge import Judged, Judgement, Pair, judge
from rlhfctl.recipe.schema import Compare
from rlhfctl.recipe.sections.scorers import ENDPOINT
from rlhfctl.rewards.episode import Episode
from rlhfctl.stages.answers import Answers
from rlhfctl.stages.context import Context
from rlhfctl.stages.controls import Compared, Scores, best_name, best_samples, pairings
from rlhfctl.verdict import MAIN

FILE = "judgements.jsonl"


@dataclass(frozen=True)
class Asked:
    """The judged pairs of each comparison by name: `places[i]` is the prompt and the sample of pair i."""

    judged: Judged
    pairs: Mapping[str, Sequence[Pair]]
    places: Mapping[str, Sequence[tuple[int, int]]]

    def values(self, name: str) -> dict[int, float]:
        """Return the policy's value by prompt, the mean over its judged pairs; prompts without one are missing."""
        by_prompt: dict[int, list[float]] = {}
        for (prompt, _), judgement in zip(self.places[name], self.judged.comparisons[name], strict=True):
            if judgement.value is not None:
                by_prompt.setdefault(prompt, []).append(judgement.value)
        return {prompt: fmean(values) for prompt, values in by_prompt.items()}

    def entry(self, name: str, compared: Compared) -> dict[str, Any]:
        """Return the judge's entry for one comparison, with the prompts that it rests on and their number."""
        by_prompt = self.values(name)
        values = list(by_prompt.values())
        entry = compared(values, [1 - value for value in values])
        return entry | {"prompts": len(values), "judged": list(by_prompt)}

    def controls(self, compared: Compared) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the judge's entries of the controls, by name."""
        return {name: {ENDPOINT: self.entry(name, compared)} for name in self.judged.comparisons if name != MAIN}

    def scores(self) -> dict[tuple[int, int], float]:
        """Return the policy's value of each judged pair of the main comparison, by prompt and sample."""
        judged = zip(self.places[MAIN], self.judged.comparisons[MAIN], strict=True)
        return {place: judgement.value for place, judgement in judged if judgement.value is not None}

    def block(
        self,
        section: Compare,
        policy: Mapping[str, Scores],
        reference: Mapping[str, Scores],
        main: float | None,
        seed: int,
    ) -> dict[str, Any]:
        """Return the block `endpoint` of compare.json. `policy`, `reference`: each other judge's scores."""
        assert section.endpoint is not None
        by_prompt: list[tuple[int, Judgement]] = []
        for name, judged in self.judged.comparisons.items():
            by_prompt += [(prompt, one) for (prompt, _), one in zip(self.places[name], judged, strict=True)]
        differences = {
            name: [policy[name][main][i][j] - reference[name][main][i][j] for i, j in self.places[MAIN]]
            for name in policy
        }
        values = [one.value for one in self.judged.comparisons[MAIN]]
        return (
            summary.totals(section.endpoint, self.judged)
            | summary.place(by_prompt, samples=section.bootstrap_samples, seed=seed)
            | summary.agreement(values, differences)
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of judgements.jsonl: a question each, with what was answered."""
        for name, judged in self.judged.comparisons.items():
            for (prompt, sample), judgement in zip(self.places[name], judged, strict=True):
                for order, reply in zip(("policy", "reference"), judgement.replies or (), strict=False):
                    yield {
                        "comparison": name,
                        "prompt_index": prompt,
                        "sample": sample,
                        "first": order,
                        "choice": reply.choice,
                        "failure": reply.failure,
                        "answer": reply.answer.text if reply.answer is not None else reply.said,
                    }


def ask(
    section: Compare, ctx: Context, answers: Answers, reference: Mapping[str, Scores], scorer: str | None
) -> Asked | None:
    """Judge the pairs of the comparison; None if `endpoint` is no judge.

    `reference`: the scores of the reference, by which `scorer` chooses its best of n samples.
    """
    if section.endpoint is None or ENDPOINT not in section.judges:
        return None
    for warning in client.check(section.endpoint):
        ctx.warn(warning)
    places, pairs = {}, {}
    for name, ours, theirs, samples in _comparisons(section, answers, reference, scorer):
        counts = [min(len(a), len(b), samples) for a, b in zip(ours, theirs, strict=True)]
        found = [(i, j) for i, count in enumerate(counts) for j in range(count)]
        places[name], pairs[name] = found, [_pair(ours[i][j], theirs[i][j]) for i, j in found]
    count = sum(map(len, pairs.values()))
    where = section.endpoint.base_url
    ctx.note(f"{count} pairs of {', '.join(pairs)} go to {section.endpoint.model} at {where}, each in both orders")
    judged = judge(section.endpoint, ctx.run.judge_cache, pairs)
    for warning in summary.doubts(section.endpoint, judged):
        ctx.warn(warning)
    asked = Asked(judged, pairs, places)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked.rows())
    fs.write_atomic(ctx.folder / FILE, text)
    return asked


def _comparisons(
    section: Compare, answers: Answers, scores: Mapping[str, Scores], scorer: str | None
) -> Iterator[tuple[str, list[list[Episode]], list[list[Episode]], int]]:
    """Yield name, responses of policy and of reference, and the most pairs per prompt, of each comparison to judge."""
    main, controls, samples = answers.main, section.controls, section.endpoint_samples
    policy, reference = answers.policy, answers.reference
    yield MAIN, policy[main].episodes, reference[main].episodes, samples
    if not section.endpoint_decides or controls is None or main is None:
        return
    for _, name, warm, cold in pairings(section, answers):
        yield name, policy[warm].episodes, reference[cold].episodes, min(samples, controls.samples_per_prompt)
    n = controls.best_of_n
    if scorer is not None and n:
        chosen = zip(reference[main].episodes, best_samples(n, scores[scorer][main]), strict=True)
        best = [[episodes[index]] * samples for episodes, index in chosen]
        yield best_name(n), policy[main].episodes, best, samples


def _pair(policy: Episode, reference: Episode) -> Pair:
    return Pair(_text(policy.prompt), _text(policy.completion), _text(reference.completion))


def _text(value: Any) -> str:
    """Write a prompt or response as text that can be encoded: half a surrogate pair becomes a question mark."""
    return transcript(value).encode("utf-8", "replace").decode("utf-8")
