"""Measure both sides of a comparison by the metrics that the recipe lists (`compare.metrics`); they decide nothing.

The value of a prompt is the mean over its samples; a sample without a value (None) is left out, and so is a prompt
without any on one side. sacreBLEU is also computed over all responses together, as papers report it. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy

from rlhfctl.events import Work
from rlhfctl.recipe.sections.scorers import is_metric
from rlhfctl.rewards.checked import Checked
from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.rewards.metric import references_of, text_of
from rlhfctl.rewards.overlap import corpus_score
from rlhfctl.stats.paired import compare_paired

Sides = Mapping[str, Sequence[Sequence[Episode]]]  # policy and reference -> prompt, sample
_REPORTED = ("policy_mean", "policy_ci95", "reference_mean", "reference_ci95", "delta", "delta_ci95")


def measured(scorers: Mapping[str, RewardFunction], sides: Sides, *, seed: int, samples: int) -> dict[str, Any]:
    """Return the entry of each metric: means of both sides, their difference, and 95% intervals over prompts.

    `samples`: bootstrap resamples. A metric without a value at any prompt has `prompts` 0 and nothing else.
    """
    return {name: _entry(name, scorer, sides, seed, samples) for name, scorer in scorers.items()}


def _entry(name: str, scorer: RewardFunction, sides: Sides, seed: int, samples: int) -> dict[str, Any]:
    with Work(f"measuring {name}"):
        values = {side: _by_prompt(scorer, episodes) for side, episodes in sides.items()}
    pairs = [
        (policy, reference)
        for policy, reference in zip(values["policy"], values["reference"], strict=True)
        if policy is not None and reference is not None
    ]
    entry: dict[str, Any] = {"prompts": len(pairs)}
    if not pairs:
        return entry
    policy, reference = (numpy.array(side) for side in zip(*pairs, strict=True))
    result = compare_paired(policy, reference, seed=seed, samples=samples)
    for key in _REPORTED:
        value = getattr(result, key)
        entry[key] = value if isinstance(value, float) else [value.low, value.high]
    for side, episodes in sides.items() if is_metric(name) else ():
        flat = [episode for samples_of in episodes for episode in samples_of]
        corpus = _corpus(name, flat)
        if corpus is not None:
            entry[f"{side}_corpus"] = corpus
    return entry


def _by_prompt(scorer: RewardFunction, episodes: Sequence[Sequence[Episode]]) -> list[float | None]:
    flat = [episode for samples in episodes for episode in samples]
    scores: list[float | None] = scorer.optional(flat) if isinstance(scorer, Checked) else list(scorer(flat))
    means: list[float | None] = []
    start = 0
    for samples in episodes:
        known = [score for score in scores[start : start + len(samples)] if score is not None]
        means.append(fmean(known) if known else None)
        start += len(samples)
    return means


def _corpus(name: str, episodes: Sequence[Episode]) -> float | None:
    if name != "sacrebleu":
        return None
    texts = [text_of(one.completion) for one in episodes]
    return corpus_score(name, texts, [references_of(name, one.row) for one in episodes])
