"""Compute the controls of a comparison: policy against reference under conditions that expose cheap explanations.

Reads the scores of responses that are already sampled; pure. The kinds of control rows and the verdict over them are in
verdict.py. The unit is the prompt: the value of a prompt is the mean over its samples, and both models have equally
many samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhfctl.recipe.schema import Compare
from rlhfctl.stages.answers import GREEDY, Answers
from rlhfctl.verdict import BEST_OF_N, COLDER, EQUAL, MATCHED

Scores = Mapping[float | None, list[list[float]]]  # temperature -> prompt, sample
Entries = Mapping[str, dict[str, Any]]  # judge -> its entry
Compared = Callable[[Sequence[float], Sequence[float]], dict[str, Any]]
"""Compares policy and reference on one value per prompt each: a judge's entry in compare.json."""


def control_rows(
    section: Compare,
    answers: Answers,
    policy: Mapping[str, Scores],
    reference: Mapping[str, Scores],
    scorer: str | None,
    compared: Compared,
    more: Mapping[str, Entries] | None = None,
) -> Iterator[dict[str, Any]]:
    """Return the rows of `controls` in compare.json. `policy` and `reference` hold each judge's scores by temperature.

    `scorer`: the judge that PPO trained against; it chooses the best of n samples (None: there is none). `more`:
    entries of judges that compare pairs and score no single response, by the control's name.
    """
    controls, main, more = section.controls, answers.main, more or {}
    if controls is None or main is None:
        return
    count = controls.samples_per_prompt
    for kind, name, warm, cold in pairings(section, answers):
        judges = {
            judge: compared(means(policy[judge][warm], count), means(reference[judge][cold], count)) for judge in policy
        }
        entropies = {
            "entropy_policy": answers.policy[warm].entropy,
            "entropy_reference": answers.reference[cold].entropy,
        }
        base = {"kind": kind, "name": name, "temperature": cold, "policy_temperature": warm, "n": 1}
        yield base | entropies | {"judges": judges | dict(more.get(name, {}))}
    n = controls.best_of_n
    if scorer is not None and n:
        chosen = best_samples(n, reference[scorer][main])
        best = {
            judge: [scores[index] for scores, index in zip(by_temperature[main], chosen, strict=True)]
            for judge, by_temperature in reference.items()
        }
        judges = {judge: compared(means(policy[judge][main]), best[judge]) for judge in policy}
        name = best_name(n)
        base = {"kind": BEST_OF_N, "name": name, "temperature": main, "policy_temperature": main}
        judges |= dict(more.get(name, {}))
        yield base | {"n": n, "scorer": scorer, "kl": best_of_n_kl(n), "judges": judges}


def pairings(section: Compare, answers: Answers) -> Iterator[tuple[str, str, float, float]]:
    """Yield kind, name, and the temperatures of policy and reference, of each control on equally many samples."""
    controls, main = section.controls, answers.main
    if controls is None or main is None:
        return
    for temperature in controls.temperatures:
        yield EQUAL, control_name("both", temperature), temperature, temperature
    if answers.matched is not None:
        yield MATCHED, "matched entropy", main, answers.matched
    for temperature in controls.temperatures:
        yield COLDER, control_name("reference", temperature), main, temperature


def best_samples(n: int, scores: Sequence[Sequence[float]]) -> list[int]:
    """Choose for each prompt the sample with the highest score among the first `n`."""
    return [max(range(n), key=samples.__getitem__) for samples in scores]


def best_name(n: int) -> str:
    """Return the name of the control of the best of `n` samples."""
    return f"reference, best of {n}"


def means(scores: Sequence[Sequence[float]], count: int | None = None) -> list[float]:
    """Return the mean score per prompt over its first `count` samples (None: over all samples)."""
    return [statistics.fmean(samples[:count]) for samples in scores]


def best_of_n_kl(n: int) -> float:
    """Bound the KL (nats) between best-of-n and the sampled distribution: ln n - (n - 1) / n (Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n


def control_name(model: str, temperature: float) -> str:
    """Return the name of a control in which `model` (both, or reference) is sampled at a lower temperature."""
    return f"{model} at {temperature:g}" if temperature != GREEDY else f"{model} greedy"
