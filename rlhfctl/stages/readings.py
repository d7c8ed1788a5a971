"""Compute further readings of a comparison: effect size, win rate at equal length, prompts to settle it, corrected p.

Reads each judge's values of both sides by prompt, and the lengths of the responses; pure. They stand beside the verdict
in compare.json and do not change it. Leaves out the numbers that the verdict rests on (stats/paired.py) and the
controls: these readings are those of the main comparison alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy
from numpy.typing import NDArray

from rlhfctl.rewards.episode import Episode
from rlhfctl.stats.effect import paired_effect_size, reference_deviations
from rlhfctl.stats.length_control import length_controlled_win_rate
from rlhfctl.stats.many import holm
from rlhfctl.stats.paired import paired_differences, sign_test
from rlhfctl.stats.power import prompts_to_settle, sign_test_power
from rlhfctl.stats.resampling import Interval

Values = Mapping[int, tuple[float, float]]
"""The values of policy and reference by prompt. A judge that left out a prompt has none for it."""

LENGTH_SAMPLES = 2_000
"""Most resamples of the length-controlled win rate: each is a regression of its own, and more move no percent."""


def of_judges(
    values: Mapping[str, Values], longer: Mapping[str, Sequence[float]], *, seed: int, samples: int
) -> dict[str, dict[str, Any]]:
    """Return the readings of each judge, as its entry in compare.json holds them.

    `longer`: by how much the policy's responses that a judge read are longer, by judge and prompt. p is corrected for
    the number of judges: whoever looks at several has several chances to find a difference that is none.
    """
    found = {
        name: _of_judge(pairs, [longer[name][prompt] for prompt in pairs], seed=seed, samples=samples)
        for name, pairs in values.items()
    }
    p_values = [sign_test(paired_differences(*_sides(pairs))).p_value for pairs in values.values()]
    for entry, p_adjusted in zip(found.values(), holm(p_values), strict=True):
        entry["p_adjusted"] = p_adjusted
    return found


def length_differences(
    policy: Sequence[Sequence[Episode]], reference: Sequence[Sequence[Episode]], count: int | None = None
) -> list[float]:
    """Compute by how much the policy's responses to each prompt are longer than the reference's, on average.

    `count`: over the first so many samples of each side alone, where a judge read no others.
    """
    return [
        fmean(map(length_of, ours[:count])) - fmean(map(length_of, theirs[:count]))
        for ours, theirs in zip(policy, reference, strict=True)
    ]


def length_of(episode: Episode) -> int:
    """Count the tokens of a response, or its words where it has no ids: samples that came as text."""
    return len(episode.response_ids) if len(episode.response_ids) else len(text_of(episode).split())


def text_of(episode: Episode) -> str:
    """Return the text of a response, also where it is a message."""
    return episode.completion if isinstance(episode.completion, str) else str(episode.completion[-1]["content"])


def _of_judge(pairs: Values, lengths: Sequence[float], *, seed: int, samples: int) -> dict[str, Any]:
    policy, reference = _sides(pairs)
    differences = paired_differences(policy, reference)
    effect = paired_effect_size(policy, reference, seed=seed, samples=samples)
    controlled = length_controlled_win_rate(differences, lengths, seed=seed, samples=min(samples, LENGTH_SAMPLES))
    test = sign_test(differences)
    decided = test.wins + test.losses
    return {
        "effect_size": effect.value if effect is not None else None,
        "effect_size_ci95": _ends(effect.ci95) if effect is not None else None,
        "reference_deviations": reference_deviations(policy, reference),
        "length_controlled_win_rate": controlled.win_rate,
        "length_controlled_win_rate_ci95": _ends(controlled.ci95) if controlled.ci95 is not None else None,
        "length_effect": controlled.length_effect,
        "length_control_missing": controlled.why_not or None,
        "prompts_to_settle": prompts_to_settle(test.wins, test.losses, test.ties),
        "power": sign_test_power(decided, max(test.wins, test.losses) / decided) if decided else None,
    }


def _sides(pairs: Values) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    both = numpy.array(list(pairs.values()), dtype=numpy.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
