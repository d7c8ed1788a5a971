"""Explain the policy's loss of one token of a trace, by the algorithm of its stage: clipped or not, -A log p, grpo's.

Pure functions; the text is ASCII alone, so that every terminal shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlhfctl.dashboard.formulas import PPO, Step, n, signed
from rlhfctl.dashboard.traces import Record
from rlhfctl.stats import ppo_arithmetic as arithmetic

_WILLIAMS = "Williams 1992, REINFORCE"
_GRPO = "Shao et al. 2024, arXiv 2402.03300"
_TRPO = "Schulman et al. 2015, arXiv 1502.05477, eq. 14"


def policy_epoch(record: Record, settings: Mapping[str, Any], advantage: float, at: int, number: int) -> Iterator[Step]:
    """Explain what one PPO epoch made of the token at `at`, whose advantage is `advantage`."""
    weights = record.get("importance")  # with ppo.importance_cap
    weight = None if weights is None else weights[at]
    gain = advantage * (1.0 if weight is None else weight)
    weighted = "" if weight is None else f" with A times its importance weight {n(weight)}"
    if not arithmetic.has_ratio(settings):
        yield _score_function(record, gain, weighted, at, number)
        return
    yield from _with_ratio(record, settings, gain, weighted, at, number)
    if settings.get("algorithm") == "grpo":
        yield _kl_in_loss(record, settings, at, number)


def _score_function(record: Record, gain: float, weighted: str, at: int, number: int) -> Step:
    now = record["epochs"][number]["logprobs"][at]
    return Step(
        f"epoch {number + 1}: objective",
        f"A log p(now){weighted}; its negative is the loss",
        f"{n(gain)} x {signed(now)}",
        gain * now,
        None,
        _WILLIAMS if number == 0 else "",
    )


def _with_ratio(
    record: Record, settings: Mapping[str, Any], gain: float, weighted: str, at: int, number: int
) -> Iterator[Step]:
    epoch = record["epochs"][number]
    ratio = math.exp(epoch["logprobs"][at] - record["policy_logprobs"][at])
    yield Step(
        f"epoch {number + 1}: ratio",
        "p(now) / p(when sampled) = exp(log p(now) - log p)",
        f"exp({n(epoch['logprobs'][at])} - {signed(record['policy_logprobs'][at])})",
        ratio,
        epoch["ratio"][at],
        f"{PPO}, section 3" if number == 0 else "",
    )
    if not arithmetic.clips(settings):
        yield Step(
            f"epoch {number + 1}: objective",
            f"ratio A{weighted}; its negative is the loss",
            f"{n(ratio)} x {signed(gain)}",
            ratio * gain,
            None,
            _TRPO if number == 0 else "",
        )
        return
    clip = settings["cliprange"]
    plain, clipped = (float(term[0]) for term in arithmetic.objective([ratio], [gain], clip))
    held = "the clip holds it" if epoch["clipped"][at] else "not clipped"
    yield Step(
        f"epoch {number + 1}: objective",
        f"min(ratio A, clip(ratio, {n(1 - clip)}, {n(1 + clip)}) A){weighted}; its negative is the loss",
        f"min({n(plain)}, {n(clipped)}): {held}",
        min(plain, clipped),
        None,
        f"{PPO}, eq. 7" if number == 0 else "",
    )


def _kl_in_loss(record: Record, settings: Mapping[str, Any], at: int, number: int) -> Step:
    now, reference = record["epochs"][number]["logprobs"][at], record["reference_logprobs"][at]
    kept = (record.get("kept_logprobs") or [0.0] * (at + 1))[at]
    difference = reference - now + kept
    value = float(arithmetic.k3([now], [reference], [kept])[0])
    return Step(
        f"epoch {number + 1}: KL in the loss",
        f"q/p(now) - 1 - log(q/p(now)); the loss has {n(settings['kl_coef'])} x it (kl_coef)",
        f"exp({n(difference)}) - 1 - {signed(difference)}",
        value,
        None,
        f"{_GRPO}, eq. 4" if number == 0 else "",
    )
