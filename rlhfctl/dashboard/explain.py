"""Explain the numbers of one token of a trace: each formula, with this token's numbers in it, and its source.

The values are computed again with NumPy (stats/ppo_arithmetic.py) from the trace and the stage's settings, and stand
beside what training recorded. Pure functions; the text is ASCII alone, so that every terminal shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhfctl.dashboard.text import number
from rlhfctl.dashboard.traces import Record
from rlhfctl.stats import ppo_arithmetic as arithmetic

TOLERANCE = 1e-4
"""Largest difference, relative to numbers above 1, between a recorded number and the same computed again: training
computes in float32."""

TERMS_SHOWN = 4
"""Number of terms of a long sum that are written out."""

_PPO, _GAE, _DETAILS = (
    "Schulman et al. 2017, arXiv 1707.06347",
    "Schulman et al. 2015, arXiv 1506.02438",
    ("Huang et al. 2024, arXiv 2403.17031"),
)
_KL_BLOG = "Schulman 2020, joschu.net/blog/kl-approx.html"
_KL_FORMULAS = {"k1": "log p - log q", "k2": "(log p - log q)^2 / 2", "k3": "q/p - 1 - log(q/p)"}


@dataclass(frozen=True)
class Step:
    """One number: its name, its formula in symbols, the formula with the numbers in it, its source ("": as before).

    `value` is computed here; `recorded` is the same number in the trace, or (`compared` says which) by another formula;
    None where there is none.
    """

    name: str
    formula: str
    worked: str
    value: float
    recorded: float | None
    source: str
    compared: str = "recorded"

    @property
    def agrees(self) -> bool:
        """Tell whether the recorded number is the computed one, up to the rounding of float32."""
        gap = 0.0 if self.recorded is None else abs(self.value - self.recorded)
        return gap <= TOLERANCE * max(1.0, abs(self.value))


@dataclass(frozen=True)
class Worked:
    """The numbers of one episode, computed again; arrays per token or per state."""

    kl: Sequence[float]
    score: float
    plain_rewards: Sequence[float]
    rewards: Sequence[float]
    deltas: Sequence[float]
    plain_advantages: Sequence[float]
    advantages: Sequence[float]
    n_step: Sequence[float]
    returns: Sequence[float]


def work_out(record: Record, settings: Mapping[str, Any]) -> Worked:
    """Compute an episode's numbers again from log-probabilities, score and values. Needs a critic's values.

    Where the trace does not say how the batch was whitened (an older one), the recorded numbers stand in.
    """
    tokens, values = len(record["ids"]), record["values"]
    kept = record.get("kept_logprobs") or [0.0] * tokens
    kl = arithmetic.kl(record["policy_logprobs"], record["reference_logprobs"], kept, settings["kl_estimator"])
    score = arithmetic.final_score(
        record["raw_score"], record["ended"], settings["missing_eos_penalty"], settings["missing_eos_score"]
    )
    plain_rewards = arithmetic.rewards(kl, score, len(values), settings["kl_coef"])
    rewards = plain_rewards
    if settings["whiten_rewards"]:
        rewards = _rescaled(plain_rewards, record, "reward") or record["rewards"]
    deltas = arithmetic.deltas(rewards, values, settings["gamma"])
    plain = arithmetic.advantages(deltas, settings["gamma"], settings["lam"])
    advantages = plain[:tokens]
    if settings["whiten_advantages"]:
        advantages = _rescaled(plain[:tokens], record, "advantage") or record["advantages"]
    return Worked(
        kl=_floats(kl),
        score=score,
        plain_rewards=_floats(plain_rewards),
        rewards=_floats(rewards),
        deltas=_floats(deltas),
        plain_advantages=_floats(plain),
        advantages=_floats(advantages),
        n_step=_floats(arithmetic.n_step_advantages(rewards, values, settings["gamma"])),
        returns=[float(a + v) for a, v in zip(plain, values, strict=True)],
    )


def _rescaled(values: Any, record: Record, name: Literal["reward", "advantage"]) -> Any:
    """Whiten an episode's rewards or advantages; None where the trace does not hold the batch's mean and deviation."""
    mean, std = record.get(f"{name}_mean"), record.get(f"{name}_std")
    if mean is None or std is None:
        return None
    return _floats(arithmetic.rescaled(values, mean, std, centre=name == "advantage"))


def explain(record: Record, settings: Mapping[str, Any], position: int) -> list[Step]:
    """Explain the numbers of one token, or of the state after the end, in the order in which training computes them."""
    worked = work_out(record, settings)
    steps: list[Step] = []
    if position < len(record["ids"]):
        steps += _kl(record, settings, worked, position)
    steps += _score(record, settings, worked)
    steps += _reward(record, settings, worked, position)
    steps += _advantage(record, settings, worked, position)
    if position < len(record["ids"]):
        steps += _whitened(record, settings, worked, position)
    for epoch in range(len(record["epochs"])):
        if position < len(record["ids"]):
            steps += _policy_epoch(record, settings, worked, position, epoch)
        steps += _value_epoch(record, settings, worked, position, epoch)
    return steps


# ---------------------------------------------------------------- KL, score, reward


def _kl(record: Record, settings: Mapping[str, Any], worked: Worked, at: int) -> Iterator[Step]:
    p, q = record["policy_logprobs"][at], record["reference_logprobs"][at]
    kept = (record.get("kept_logprobs") or [0.0] * (at + 1))[at]
    estimator = settings["kl_estimator"]
    formula, numerator = _KL_FORMULAS[estimator], _n(p)
    if kept:
        formula += ", with p divided by what top-k and top-p kept"
        numerator = f"({_n(p)} - {_signed(kept)})"
    difference = f"{numerator} - {_signed(q)}"
    forms = {
        "k1": difference,
        "k2": f"({difference})^2 / 2",
        "k3": f"exp({_n(q - p + kept)}) - 1 - {_signed(q - p + kept)}",
    }
    yield Step(f"KL ({estimator})", formula, forms[estimator], worked.kl[at], record["kl"][at], _KL_BLOG)


def _score(record: Record, settings: Mapping[str, Any], worked: Worked) -> Iterator[Step]:
    raw, penalty, fixed = record["raw_score"], settings["missing_eos_penalty"], settings["missing_eos_score"]
    formula, numbers = "the score that the reward gave", _n(raw)
    weights = settings.get("rewards") or {}
    if weights and record["reward_parts"]:
        parts = [(weights[name], part) for name, part in record["reward_parts"].items() if part is not None]
        formula = "the weighted sum of its parts"
        numbers = " + ".join(f"{_n(weight)} x {_signed(part)}" for weight, part in parts)
    if not record["ended"] and fixed is not None:
        formula, numbers = "missing_eos_score, because the response did not end by itself", _n(fixed)
    elif not record["ended"] and penalty is not None:
        formula += ", less missing_eos_penalty: the response did not end by itself"
        numbers += f" - {_n(penalty)}"
    source = "Stiennon et al. 2020, arXiv 2009.01325; " + _DETAILS
    yield Step("score", formula, numbers, worked.score, record["score"], source)


def _reward(record: Record, settings: Mapping[str, Any], worked: Worked, at: int) -> Iterator[Step]:
    last, tokens, coefficient = len(record["rewards"]) - 1, len(record["ids"]), settings["kl_coef"]
    formulas, numbers = [], []
    if at < tokens:
        formulas.append("-kl_coef x KL")
        numbers.append(f"-{_n(coefficient)} x {_signed(worked.kl[at])}")
    if at == last:
        formulas.append("score")
        numbers.append(_signed(worked.score))
    formula = " + ".join(formulas)
    if at < last:
        formula += f"; the score is added at position {last}, {'after the end' if last == tokens else 'the last token'}"
    whitened = settings["whiten_rewards"]
    recorded = None if whitened else record["rewards"][at]
    source = "Ziegler et al. 2019, arXiv 1909.08593, eq. 2"
    yield Step("reward", formula, " + ".join(numbers), worked.plain_rewards[at], recorded, source)
    if whitened:
        mean, std = record.get("reward_mean"), record.get("reward_std")
        numbers_ = _whitening(worked.plain_rewards[at], mean, std) + f" + {_signed(mean or 0.0)}"
        formula = "(r - mean) / sqrt(std^2 + 1e-8) + mean, over the batch"
        yield Step("reward, whitened", formula, numbers_, worked.rewards[at], record["rewards"][at], _DETAILS)


# ---------------------------------------------------------------- advantages and returns


def _advantage(record: Record, settings: Mapping[str, Any], worked: Worked, at: int) -> Iterator[Step]:
    gamma, lam, values = settings["gamma"], settings["lam"], record["values"]
    following = values[at + 1] if at + 1 < len(values) else 0.0
    yield Step(
        "delta",
        "r + gamma V(next) - V" + ("; after the last state V(next) is 0" if at + 1 == len(values) else ""),
        f"{_n(worked.rewards[at])} + {_n(gamma)} x {_signed(following)} - {_signed(values[at])}",
        worked.deltas[at],
        record["deltas"][at],
        f"{_GAE}, section 3 (temporal difference)",
    )
    whitened = settings["whiten_advantages"]
    recorded = None if whitened or at >= len(record["advantages"]) else record["advantages"][at]
    yield Step(
        "advantage (GAE)",
        "delta[t] + (gamma lam) delta[t+1] + (gamma lam)^2 delta[t+2] + ...",
        _sum(worked.deltas[at:], gamma * lam),
        worked.plain_advantages[at],
        recorded,
        f"{_GAE}, eq. 16",
    )
    yield Step(
        "  if lam were 0",
        "delta[t]: the one-step temporal difference alone",
        _n(worked.deltas[at]),
        float(arithmetic.advantages(worked.deltas, gamma, 0.0)[at]),
        worked.deltas[at],
        f"{_GAE}, eq. 17",
        "as delta",
    )
    yield Step(
        "  if lam were 1",
        "r[t] + gamma r[t+1] + gamma^2 r[t+2] + ... - V: the return over all steps, less V",
        f"{_sum(worked.rewards[at:], gamma)} - {_signed(values[at])}",
        worked.n_step[at],
        float(arithmetic.advantages(worked.deltas, gamma, 1.0)[at]),
        f"{_GAE}, eq. 18",
        "by the sum of all deltas",
    )
    yield Step(
        "return",
        "advantage + V: what the critic is to predict",
        f"{_signed(worked.plain_advantages[at])} + {_signed(values[at])}",
        worked.returns[at],
        record["returns"][at],
        _DETAILS,
    )


def _whitened(record: Record, settings: Mapping[str, Any], worked: Worked, at: int) -> Iterator[Step]:
    if not settings["whiten_advantages"]:
        return
    numbers = _whitening(worked.plain_advantages[at], record.get("advantage_mean"), record.get("advantage_std"))
    formula = "(A - mean) / sqrt(std^2 + 1e-8), over all tokens of the batch"
    yield Step("advantage, whitened", formula, numbers, worked.advantages[at], record["advantages"][at], _DETAILS)


def _whitening(value: float, mean: float | None, std: float | None) -> str:
    if mean is None or std is None:
        return "mean and std of the batch are not in this trace, which an older version wrote"
    return f"({_n(value)} - {_signed(mean)}) / sqrt({_n(std)}^2 + 1e-8)"


# ---------------------------------------------------------------- losses


def _policy_epoch(record: Record, settings: Mapping[str, Any], worked: Worked, at: int, number_: int) -> Iterator[Step]:
    epoch, clip = record["epochs"][number_], settings["cliprange"]
    log_ratio = epoch["logprobs"][at] - record["policy_logprobs"][at]
    weights = record.get("importance")  # with ppo.importance_cap
    weight = None if weights is None else weights[at]
    ratio, advantage = math.exp(log_ratio), worked.advantages[at] * (1.0 if weight is None else weight)
    yield Step(
        f"epoch {number_ + 1}: ratio",
        "p(now) / p(when sampled) = exp(log p(now) - log p)",
        f"exp({_n(epoch['logprobs'][at])} - {_signed(record['policy_logprobs'][at])})",
        ratio,
        epoch["ratio"][at],
        f"{_PPO}, section 3" if number_ == 0 else "",
    )
    plain, clipped = (float(term[0]) for term in arithmetic.objective([ratio], [advantage], clip))
    held = "the clip holds it" if epoch["clipped"][at] else "not clipped"
    yield Step(
        f"epoch {number_ + 1}: objective",
        f"min(ratio A, clip(ratio, {_n(1 - clip)}, {_n(1 + clip)}) A)"
        + ("" if weight is None else f" with A times its importance weight {_n(weight)}")
        + "; its negative is the loss",
        f"min({_n(plain)}, {_n(clipped)}): {held}",
        min(plain, clipped),
        None,
        f"{_PPO}, eq. 7" if number_ == 0 else "",
    )


def _value_epoch(record: Record, settings: Mapping[str, Any], worked: Worked, at: int, number_: int) -> Iterator[Step]:
    epoch, clip = record["epochs"][number_], settings["cliprange_value"]
    if "values" not in epoch:
        return
    now, old, due = epoch["values"][at], record["values"][at], worked.returns[at]
    plain, near = (float(error[0]) for error in arithmetic.value_errors([now], [old], [due], clip))
    held = "the clip holds it" if near > plain else "not clipped"
    yield Step(
        f"epoch {number_ + 1}: value loss",
        f"max((V - return)^2, (V held within {_n(clip)} of the old V - return)^2) / 2",
        f"max(({_n(now)} - {_signed(due)})^2 = {_n(plain)}, {_n(near)}) / 2: {held}",
        max(plain, near) / 2,
        None,
        "Engstrom et al. 2020, arXiv 2005.12729, section 3" if number_ == 0 else "",
    )


# ---------------------------------------------------------------- the losses of a batch


@dataclass(frozen=True)
class Losses:
    """The losses of an update from its trace, beside the logged ones. Empty if not all its episodes are traced."""

    traced: int
    episodes: int
    computed: Mapping[str, float]
    logged: Mapping[str, float]
    objective: str  # what each optimizer step lowers


def batch_losses(episodes: Sequence[Record], settings: Mapping[str, Any], logged: Mapping[str, float]) -> Losses:
    """Add up the losses of an update from the traces of its episodes, if the trace holds all of them."""
    size = int(settings["per_device_train_batch_size"]) * int(settings["gradient_accumulation_steps"])
    whole = len(episodes) == size and all("minibatch" in epoch for one in episodes for epoch in one["epochs"])
    found = arithmetic.losses(episodes, settings["cliprange"], settings["cliprange_value"]) if whole else {}
    kept = {name: logged[name] for name in found if name in logged}
    return Losses(len(episodes), size, found, kept, _objective(settings))


def _objective(settings: Mapping[str, Any]) -> str:
    entropy = settings["entropy_coef"]
    bonus = f" - {_n(entropy)} x policy_entropy (entropy_coef)" if entropy else ""
    return f"policy_loss + {_n(settings['vf_coef'])} x value_loss (vf_coef){bonus}"


# ---------------------------------------------------------------- writing numbers


def _sum(terms: Sequence[float], rate: float) -> str:
    """Write a discounted sum: the first terms, and how many more there are."""
    shown = [
        f"{_n(rate**power)} x {_signed(term)}" if power and rate != 1 else _signed(term)
        for power, term in enumerate(terms[:TERMS_SHOWN])
    ]
    more = len(terms) - TERMS_SHOWN
    return " + ".join(shown) + (f" + {more} more" if more > 0 else "")


def _n(value: float) -> str:
    return number(value, 4)


def _signed(value: float) -> str:
    """Write a number inside a sum or product: a negative one in parentheses."""
    return f"({_n(value)})" if value < 0 else _n(value)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
