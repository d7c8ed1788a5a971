"""Explain the advantage of a whole response, which each of its tokens has: reinforce, rloo and grpo.

Pure functions; the text is ASCII alone, so that every terminal shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhfctl.dashboard.formulas import Step, n, signed
from rlhfctl.dashboard.traces import Record
from rlhfctl.stats import ppo_arithmetic as arithmetic

MNIH = "Mnih et al. 2016, arXiv 1602.01783, section 4"
_BACK_TO_BASICS = "Ahmadian et al. 2024, arXiv 2402.14740, section 3"
_GRPO = "Shao et al. 2024, arXiv 2402.03300, section 4.1.2"
_DR_GRPO = "Liu et al. 2025, arXiv 2503.20783, section 3"
_BASELINES = {
    "reinforce": ("mean R of all earlier updates", _BACK_TO_BASICS),
    "rloo": ("mean R of the other responses to this prompt", "Kool et al. 2019; " + _BACK_TO_BASICS),
    "grpo": ("mean R of all responses to this prompt", _GRPO),
}
_SCALES = {"group": "std of R over the responses to this prompt", "batch": "std of R over the batch"}


def response_steps(record: Record, settings: Mapping[str, Any], kl: Sequence[float], score: float) -> Iterator[Step]:
    """Explain reward, baseline, scale (if there is one) and advantage of the response; the advantage comes last.

    The baseline and the scale were computed from other responses, so they are taken from the trace.
    """
    algorithm, coefficient = settings["algorithm"], record.get("kl_coef", settings["kl_coef"])
    baseline, scale = record["baseline"], record["scale"]
    if algorithm == "grpo":
        reward, formula, numbers = score, "the score; the KL is in the loss", n(score)
    else:
        reward = arithmetic.response_reward(score, kl, coefficient)
        formula = "score - kl_coef x sum of KL over the tokens"
        numbers = f"{n(score)} - {n(coefficient)} x {signed(sum(kl))}"
    what, source = _BASELINES[algorithm]
    yield Step("R, of the response", formula, numbers, reward, record["response_reward"], source)
    yield Step("baseline", what, "from the trace", baseline, None, "")
    over = settings.get("scale_rewards", "none")
    formula, numbers = "R - baseline, at every token", f"{n(reward)} - {signed(baseline)}"
    if over != "none":
        yield Step("scale", f"{_SCALES[over]}, + 1e-4", "from the trace", scale, None, "")
        formula, numbers = "(R - baseline) / scale, at every token", f"({numbers}) / {n(scale)}"
    elif algorithm == "grpo":
        source = _DR_GRPO
    advantage = (reward - baseline) / scale
    yield Step("advantage", formula, numbers, advantage, record["advantages"][0], source)
