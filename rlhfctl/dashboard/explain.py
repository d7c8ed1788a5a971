"""Explain the numbers of one token of a trace: each formula, with this token's numbers in it, and its source.

The values are computed again with NumPy (stats/ppo_arithmetic.py) from the trace and the stage's settings, and stand
beside what training recorded. Pure functions; the text is ASCII alone, so that every terminal shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhfctl.dashboard.explain_policy import policy_epoch
from rlhfctl.dashboard.explain_responses import MNIH, response_steps
from rlhfctl.dashboard.formulas import DETAILS, GAE, KL_BLOG, KL_FORMULAS, Step, floats, n, signed, summed
from rlhfctl.dashboard.traces import Record
from rlhfctl.stats import ppo_arithmetic as arithmetic


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
    kl, score = _kl_and_score(record, settings)
    plain_rewards = arithmetic.rewards(kl, score, len(values), record.get("kl_coef", settings["kl_coef"]))
    rewards = plain_rewards
    if settings["whiten_rewards"]:
        rewards = _rescaled(plain_rewards, record, "reward") or record["rewards"]
    deltas = arithmetic.deltas(rewards, values, settings["gamma"])
    plain = arithmetic.advantages(deltas, settings["gamma"], settings["lam"])
    advantages = plain[:tokens]
    of_critic = plain
    if settings.get("lam_value") is not None:
        of_critic = arithmetic.advantages(deltas, settings["gamma"], settings["lam_value"])
    if settings["whiten_advantages"]:
        advantages = _rescaled(plain[:tokens], record, "advantage") or record["advantages"]
    return Worked(
        kl=floats(kl),
        score=score,
        plain_rewards=floats(plain_rewards),
        rewards=floats(rewards),
        deltas=floats(deltas),
        plain_advantages=floats(plain),
        advantages=floats(advantages),
        n_step=floats(arithmetic.n_step_advantages(rewards, values, settings["gamma"])),
        returns=[float(a + v) for a, v in zip(of_critic, values, strict=True)],
    )


def _kl_and_score(record: Record, settings: Mapping[str, Any]) -> tuple[list[float], float]:
    """Compute the KL of each token, and the score after what is due for a missing end."""
    kept = record.get("kept_logprobs") or [0.0] * len(record["ids"])
    kl = record["kl"]  # the exact one: a trace does not keep whole distributions
    if (estimator := _estimator(settings)) != "exact":
        kl = arithmetic.kl(record["policy_logprobs"], record["reference_logprobs"], kept, estimator)
    mean, std = record.get("score_mean", 0.0), record.get("score_std", 1.0)
    score = arithmetic.final_score(
        arithmetic.scaled_score(record["raw_score"], mean, std, settings.get("score_clip")),
        record["ended"],
        settings["missing_eos_penalty"],
        settings["missing_eos_score"],
    )
    return floats(kl), score


def _estimator(settings: Mapping[str, Any]) -> str:
    """Return the estimator of the KL that is logged; grpo has no key for it."""
    return str(settings.get("kl_estimator", "k1"))


def _rescaled(values: Any, record: Record, name: Literal["reward", "advantage"]) -> Any:
    """Whiten an episode's rewards or advantages; None where the trace does not hold the batch's mean and deviation."""
    mean, std = record.get(f"{name}_mean"), record.get(f"{name}_std")
    if mean is None or std is None:
        return None
    return floats(arithmetic.rescaled(values, mean, std, centre=name == "advantage"))


def explain(record: Record, settings: Mapping[str, Any], position: int) -> list[Step]:
    """Explain the numbers of one token, or of the state after the end, in the order in which training computes them."""
    if "values" not in record:
        return _explain_response(record, settings, position)
    worked = work_out(record, settings)
    steps: list[Step] = []
    if position < len(record["ids"]):
        steps += _kl(record, settings, worked.kl, position)
    steps += _score(record, settings, worked.score)
    steps += _reward(record, settings, worked, position)
    steps += _advantage(record, settings, worked, position)
    if position < len(record["ids"]):
        steps += _whitened(record, settings, worked, position)
    for epoch in range(len(record["epochs"])):
        if position < len(record["ids"]):
            steps += policy_epoch(record, settings, worked.advantages[position], position, epoch)
        steps += _value_epoch(record, settings, worked, position, epoch)
    return steps


def can_explain(record: Record) -> bool:
    """Tell whether the trace holds what an advantage is made of: a critic's values, or a baseline per response."""
    return "values" in record or "baseline" in record


def _explain_response(record: Record, settings: Mapping[str, Any], position: int) -> list[Step]:
    """Explain a token whose advantage is that of its whole response: reinforce, rloo and grpo."""
    kl, score = _kl_and_score(record, settings)
    steps: list[Step] = []
    if position < len(record["ids"]):
        steps += _kl(record, settings, kl, position)
    steps += _score(record, settings, score)
    steps += response_steps(record, settings, kl, score)
    if position < len(record["ids"]):
        advantage = steps[-1].value
        for epoch in range(len(record["epochs"])):
            steps += policy_epoch(record, settings, advantage, position, epoch)
    return steps


# ---------------------------------------------------------------- KL, score, reward


def _kl(record: Record, settings: Mapping[str, Any], kl: Sequence[float], at: int) -> Iterator[Step]:
    p, q = record["policy_logprobs"][at], record["reference_logprobs"][at]
    kept = (record.get("kept_logprobs") or [0.0] * (at + 1))[at]
    estimator = _estimator(settings)
    if estimator == "exact":
        formula, worked = "sum over the vocabulary of p (log p - log q)", "as recorded: a trace keeps no distribution"
        yield Step("KL (exact)", formula, worked, record["kl"][at], None, "Amini et al. 2025, arXiv 2504.10637")
        return
    formula, numerator = KL_FORMULAS[estimator], n(p)
    if kept:
        formula += ", with p divided by what top-k and top-p kept"
        numerator = f"({n(p)} - {signed(kept)})"
    difference = f"{numerator} - {signed(q)}"
    forms = {
        "k1": difference,
        "k2": f"({difference})^2 / 2",
        "k3": f"exp({n(q - p + kept)}) - 1 - {signed(q - p + kept)}",
    }
    yield Step(f"KL ({estimator})", formula, forms[estimator], kl[at], record["kl"][at], KL_BLOG)


def _score(record: Record, settings: Mapping[str, Any], score: float) -> Iterator[Step]:
    raw, penalty, fixed = record["raw_score"], settings["missing_eos_penalty"], settings["missing_eos_score"]
    formula, numbers = "the score that the reward gave", n(raw)
    weights = settings.get("rewards") or {}
    if weights and record["reward_parts"]:
        parts = [(weights[name], part) for name, part in record["reward_parts"].items() if part is not None]
        formula = "the weighted sum of its parts"
        numbers = " + ".join(f"{n(weight)} x {signed(part)}" for weight, part in parts)
    clip = settings.get("score_clip")
    if "score_std" in record:
        formula += ", less mean, over deviation of all scores so far"
        numbers = f"({numbers} - {signed(record['score_mean'])}) / {n(record['score_std'])}"
    if clip is not None:
        formula += ", held within score_clip"
        numbers += f", within {clip if isinstance(clip, list) else [-clip, clip]}"
    if not record["ended"] and fixed is not None:
        formula, numbers = "missing_eos_score, because the response did not end by itself", n(fixed)
    elif not record["ended"] and penalty is not None:
        formula += ", less missing_eos_penalty: the response did not end by itself"
        numbers += f" - {n(penalty)}"
    source = "Stiennon et al. 2020, arXiv 2009.01325; " + DETAILS
    yield Step("score", formula, numbers, score, record["score"], source)


def _reward(record: Record, settings: Mapping[str, Any], worked: Worked, at: int) -> Iterator[Step]:
    last, tokens, coefficient = (
        len(record["rewards"]) - 1,
        len(record["ids"]),
        record.get("kl_coef", settings["kl_coef"]),
    )
    formulas, numbers = [], []
    if at < tokens:
        formulas.append("-kl_coef x KL")
        numbers.append(f"-{n(coefficient)} x {signed(worked.kl[at])}")
    if at == last:
        formulas.append("score")
        numbers.append(signed(worked.score))
    formula = " + ".join(formulas)
    if at < last:
        formula += f"; the score is added at position {last}, {'after the end' if last == tokens else 'the last token'}"
    whitened = settings["whiten_rewards"]
    recorded = None if whitened else record["rewards"][at]
    source = "Ziegler et al. 2019, arXiv 1909.08593, eq. 2"
    yield Step("reward", formula, " + ".join(numbers), worked.plain_rewards[at], recorded, source)
    if whitened:
        mean, std = record.get("reward_mean"), record.get("reward_std")
        numbers_ = _whitening(worked.plain_rewards[at], mean, std) + f" + {signed(mean or 0.0)}"
        formula = "(r - mean) / sqrt(std^2 + 1e-8) + mean, over the batch"
        yield Step("reward, whitened", formula, numbers_, worked.rewards[at], record["rewards"][at], DETAILS)


# ---------------------------------------------------------------- advantages and returns


def _advantage(record: Record, settings: Mapping[str, Any], worked: Worked, at: int) -> Iterator[Step]:
    gamma, lam, values = settings["gamma"], settings["lam"], record["values"]
    following = values[at + 1] if at + 1 < len(values) else 0.0
    yield Step(
        "delta",
        "r + gamma V(next) - V" + ("; after the last state V(next) is 0" if at + 1 == len(values) else ""),
        f"{n(worked.rewards[at])} + {n(gamma)} x {signed(following)} - {signed(values[at])}",
        worked.deltas[at],
        record["deltas"][at],
        f"{GAE}, section 3 (temporal difference)",
    )
    whitened = settings["whiten_advantages"]
    recorded = None if whitened or at >= len(record["advantages"]) else record["advantages"][at]
    yield Step(
        "advantage (GAE)",
        "delta[t] + (gamma lam) delta[t+1] + (gamma lam)^2 delta[t+2] + ...",
        summed(worked.deltas[at:], gamma * lam),
        worked.plain_advantages[at],
        recorded,
        f"{GAE}, eq. 16",
    )
    yield Step(
        "  if lam were 0",
        "delta[t]: the one-step temporal difference alone",
        n(worked.deltas[at]),
        float(arithmetic.advantages(worked.deltas, gamma, 0.0)[at]),
        worked.deltas[at],
        f"{GAE}, eq. 17",
        "as delta",
    )
    yield Step(
        "  if lam were 1",
        "r[t] + gamma r[t+1] + gamma^2 r[t+2] + ... - V: the return over all steps, less V",
        f"{summed(worked.rewards[at:], gamma)} - {signed(values[at])}",
        worked.n_step[at],
        float(arithmetic.advantages(worked.deltas, gamma, 1.0)[at]),
        f"{GAE}, eq. 18",
        "by the sum of all deltas",
    )
    lam_value = settings.get("lam_value")
    of_critic = "" if lam_value is None else f" by lambda {n(lam_value)} (lam_value)"
    yield Step(
        "return",
        f"advantage{of_critic} + V: what the critic is to predict",
        f"{signed(worked.returns[at] - values[at])} + {signed(values[at])}",
        worked.returns[at],
        record["returns"][at],
        DETAILS if lam_value is None else "Yue et al. 2025, arXiv 2504.05118, section 3",
    )


def _whitened(record: Record, settings: Mapping[str, Any], worked: Worked, at: int) -> Iterator[Step]:
    if not settings["whiten_advantages"]:
        return
    numbers = _whitening(worked.plain_advantages[at], record.get("advantage_mean"), record.get("advantage_std"))
    formula = "(A - mean) / sqrt(std^2 + 1e-8), over all tokens of the batch"
    yield Step("advantage, whitened", formula, numbers, worked.advantages[at], record["advantages"][at], DETAILS)


def _whitening(value: float, mean: float | None, std: float | None) -> str:
    if mean is None or std is None:
        return "mean and std of the batch are not in this trace, which an older version wrote"
    return f"({n(value)} - {signed(mean)}) / sqrt({n(std)}^2 + 1e-8)"


# ---------------------------------------------------------------- losses


def _value_epoch(record: Record, settings: Mapping[str, Any], worked: Worked, at: int, number_: int) -> Iterator[Step]:
    epoch, clip = record["epochs"][number_], settings.get("cliprange_value", math.inf)
    if "values" not in epoch:
        return
    now, old, due = epoch["values"][at], record["values"][at], worked.returns[at]
    plain, near = (float(error[0]) for error in arithmetic.value_errors([now], [old], [due], clip))
    held = "the clip holds it" if near > plain else "not clipped"
    if clip == math.inf:  # a2c takes one step, from the very values that the returns were made of
        formula, numbers = "(V - return)^2 / 2", f"({n(now)} - {signed(due)})^2 / 2"
        yield Step(f"epoch {number_ + 1}: value loss", formula, numbers, plain / 2, None, MNIH)
        return
    yield Step(
        f"epoch {number_ + 1}: value loss",
        f"max((V - return)^2, (V held within {n(clip)} of the old V - return)^2) / 2",
        f"max(({n(now)} - {signed(due)})^2 = {n(plain)}, {n(near)}) / 2: {held}",
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
    found = arithmetic.losses(episodes, settings) if whole else {}
    kept = {name: logged[name] for name in found if name in logged}
    return Losses(len(episodes), size, found, kept, _objective(settings))


def _objective(settings: Mapping[str, Any]) -> str:
    entropy = settings["entropy_coef"]
    bonus = f" - {n(entropy)} x policy_entropy (entropy_coef)" if entropy else ""
    critic = f" + {n(settings['vf_coef'])} x value_loss (vf_coef)" if "vf_coef" in settings else ""
    ptx = settings.get("ptx")
    texts = f" + {n(ptx['coef'])} x ptx_loss (ptx.coef)" if ptx else ""
    return f"policy_loss{critic}{bonus}{texts}"
