"""Raise alarms for a stage: each alarm is a sentence that tells a newcomer what the metrics show and what to try.

Pure functions of series and settings. An alarm holds only as long as its cause. Gold is not read: it exists only in the
built-in task and must not steer anyone. Thresholds are set so that runs of the shipped recipes raise no alarm. The
exception is tiny-chatgpt: its entropy does collapse, on the one answer that the recipe asks for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from rlhfctl.dashboard.series import Series
from rlhfctl.dashboard.text import number
from rlhfctl.metrics import kind, must_be_finite
from rlhfctl.stats.overoptimization import Point, overoptimized

WINDOW = 5
"""Number of updates whose median an alarm looks at: one odd batch raises no alarm."""

KL_PER_RESPONSE = 10.0
"""Nats per response. Below this, healthy runs are found at every response length."""

KL_PER_TOKEN = 0.3
"""Nats per token: at this KL the policy gives each of its tokens 1.35 times the probability that the reference gives.
Healthy runs of the shipped recipes end at 0.1 to 0.2. A run whose text broke down while its score rose ended at 1.3."""

KL_GROWTH, KL_GROWTH_FROM = 2.0, 5.0
"""Growth factor within WINDOW updates, and the nats per response above which it counts. Near 0, where KL starts,
doubling is usual."""

SHRUNK_TO, SHRUNK_FROM = 0.4, 4.0
"""Responses shorter than this share of their first length have lost content. First lengths below 4 tokens are not
judged."""

ENDS_AT_LEAST = 0.1
"""Share of responses that end by themselves. Below it, nearly all are cut at response_length, so the score judges
fragments."""

CRITIC_WINDOW = 10
"""Number of updates in a row with a negative explained variance. The first few are usual: the critic has yet to
learn."""

CLIPPED_AT_MOST = 0.3
"""Share of tokens whose ratio PPO clips. Common advice is to stay under 0.2; above 0.3 most of a step is lost."""

ENTROPY_LEFT = 0.3
"""Share of the first entropy per token that must be left. Learning lowers it; below a third, responses are near copies
of each other."""

STILL_FROM, STILL_WINDOW, STILL_KL = 20, 10, 0.05
"""First update that is judged, number of updates whose median KL is taken, and nats per response below which the policy
still equals the reference: at a KL of 0.05 a score can rise by about 0.3 of its standard deviation at most."""

REPEATED_MORE = 0.15
"""Rise of the share of repeated pairs of tokens since the first updates. In four healthy runs of the built-in task it
rose by 0.01 at most, in one whose reward pays for a word each time by 0.6. Text that breaks down otherwise need not
repeat itself that much: three runs without a KL penalty rose by 0.01 to 0.13, and the KL alarm told of them."""

EVAL_REPORTS = 3
"""Number of evaluations in a row below the best one: one or two may be chance."""

EVAL_FALL = 0.25
"""Share of the gain on the eval prompts that must be lost again to raise the alarm."""

EVAL_NOISE = 0.5
"""Fall of the mean score, in standard deviations of one response's score: two standard errors of a mean over 16
prompts."""


def alarms(stage: str, series: Mapping[str, Series], settings: Mapping[str, Any]) -> list[str]:
    """Return the sentences of the alarms that hold now, the gravest first.

    `settings` are the stage's effective settings.
    """
    found = list(_not_finite(series))
    for check in _CHECKS.get(kind(stage), ()):
        found += check(series, settings)
    return found


def _not_finite(series: Mapping[str, Series]) -> Iterator[str]:
    names = [name for name in must_be_finite() if name in series and not math.isfinite(series[name].last)]
    names = [name for name in names if series[name].step >= 0]
    if names:
        verb = "is" if len(names) == 1 else "are"
        yield (
            f"{', '.join(names)} {verb} not a number any more: training has broken down. "
            "Try a lower learning_rate, a max_grad_norm, or float32."
        )


def _kl(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("kl_coef") == 0 and not settings.get("learned_reward"):
        return  # no KL penalty on a reward that cannot be fooled: a large KL is wanted
    kl, length = _recently(series, "kl"), _recently(series, "length")
    if kl is None:
        return
    if kl > max(KL_PER_RESPONSE, KL_PER_TOKEN * (length or 0.0)):
        yield (
            f"KL is {number(kl, 3)} nats per response: the policy is far from the reference, and its text may get "
            "worse while the score climbs. Read the samples; try a higher kl_coef."
        )
        return
    both = series["kl"].tail(2 * WINDOW)
    if both is None or kl < KL_GROWTH_FROM:
        return
    if kl > KL_GROWTH * statistics.median(both[:WINDOW]):
        yield (
            f"KL more than doubled in {WINDOW} updates, to {number(kl, 3)} nats per response: the policy is running "
            "away from the reference. Try a lower learning_rate or a higher kl_coef."
        )


def _hardly_moved(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    kl = series["kl"].tail(STILL_WINDOW) if "kl" in series else None
    if kl is None or series["kl"].step < STILL_FROM + settings.get("policy_starts_after", 0):
        return
    if statistics.median(kl) < STILL_KL:
        yield (
            f"after {series['kl'].step} updates the policy has hardly moved: KL is {number(statistics.median(kl), 2)} "
            "nats per response. The verdict will find nothing. Try a higher learning_rate, more episodes, or a lower "
            "kl_coef."
        )


def _overoptimized(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    names = ("eval_score", "eval_heldout", "eval_score_se", "eval_heldout_se")
    if any(name not in series for name in names):
        return
    proxy, heldout, proxy_error, heldout_error = (dict(series[name].points) for name in names)
    steps = [step for step in heldout if step in proxy and step in proxy_error and step in heldout_error]
    found = overoptimized(
        [Point(step, proxy[step], heldout[step], proxy_error[step], heldout_error[step]) for step in steps]
    )
    if found is not None:
        yield (
            f"the policy exploits its reward: on eval prompts the reward rose from {number(found.proxy_then, 3)} to "
            f"{number(found.proxy_now, 3)}, but the held-out reward fell from {number(found.heldout_peak, 3)} (about "
            f"update {found.peak_step}) to {number(found.heldout_now, 3)}. Try use: best, a higher kl_coef, or fewer "
            "episodes."
        )


def _falling_on_eval(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    if "eval_score" not in series or "score" not in series:
        return
    scores = list(series["eval_score"].recent)
    if len(scores) < EVAL_REPORTS + 2:  # the first one, the best one, and EVAL_REPORTS after it
        return
    best_step, best = max(scores[1:-EVAL_REPORTS], key=lambda point: point[1])
    after, gain = scores[-EVAL_REPORTS:], best - scores[0][1]
    fall = max(EVAL_FALL * gain, EVAL_NOISE * (_recently(series, "raw_score_std") or 0.0))
    if gain <= 0 or any(value > best - fall for _, value in after):
        return
    then = [value for step, value in series["score"].recent if step <= best_step][-WINDOW:]
    if not then:
        then = [value for step, value in series["score"].points if step <= best_step][-WINDOW:]
    now = _recently(series, "score")
    if then and now is not None and now > statistics.median(then):
        yield (
            f"the score on training prompts still rises, but on eval prompts it fell from {number(best, 3)} (update "
            f"{best_step}) to {number(after[-1][1], 3)}: what is learned does not carry over. "
            "Try fewer episodes, use: best, or more prompts."
        )


def _never_ends(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    rate = _recently(series, "eos_rate")
    if rate is None or rate >= ENDS_AT_LEAST:
        return
    if "stop_token" in settings and settings["stop_token"] is None and not settings.get("stop_strings"):
        return  # without a stop token each response has full length
    yield (
        f"{'none' if rate < 0.005 else f'only {rate:.0%}'} of the responses end by themselves; the others are cut off "
        "at response_length. Try a longer one, a higher missing_eos_penalty, or more sft."
    )


def _shrinking(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    length, first = _recently(series, "length"), _beginning(series, "length")
    if length is not None and first is not None and first > SHRUNK_FROM and length < SHRUNK_TO * first:
        yield (
            f"responses shrank from {number(first, 3)} to {number(length, 3)} tokens: saying little may be what scores "
            "well. Read the samples; try a higher kl_coef, or a reward that is fair to long answers."
        )


def _entropy(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    entropy, first = _recently(series, "token_entropy"), _beginning(series, "token_entropy")
    if entropy is not None and first is not None and entropy < ENTROPY_LEFT * first:
        yield (
            f"the policy hardly varies its words any more (entropy per token fell from {number(first, 3)} to "
            f"{number(entropy, 3)}): fine if there is one right answer. Else try a higher kl_coef or entropy_coef."
        )


def _repeats(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    share, first = _recently(series, "repetition"), _beginning(series, "repetition")
    if share is not None and first is not None and share > first + REPEATED_MORE:
        yield (
            f"the responses repeat themselves: {share:.0%} of their pairs of tokens stood in them before, {first:.0%} "
            "at the beginning. Read the samples; try a higher kl_coef, or a reward that does not pay for repetition."
        )


def _clipped(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    share = _recently(series, "clip_fraction")
    if share is not None and share > CLIPPED_AT_MOST:
        yield (
            f"{share:.0%} of the tokens are held back by PPO's clip: each update pulls too hard. "
            "Try a lower learning_rate or fewer num_ppo_epochs."
        )


def _critic(series: Mapping[str, Series], settings: Mapping[str, Any]) -> Iterator[str]:
    last = series["explained_variance"].tail(CRITIC_WINDOW) if "explained_variance" in series else None
    if last is not None and max(last) < 0:
        more = "" if settings.get("algorithm") == "a2c" else " or more num_ppo_epochs"
        yield (
            f"for {CRITIC_WINDOW} updates the critic has been worse than guessing one number (explained variance "
            f"{number(last[-1], 2)}), so the policy learns from noise. Try larger batches{more}."
        )


def _recently(series: Mapping[str, Series], name: str) -> float | None:
    """Return the median of the last WINDOW reports, or None while there are fewer."""
    last = series[name].tail(WINDOW) if name in series else None
    return statistics.median(last) if last else None


def _beginning(series: Mapping[str, Series], name: str) -> float | None:
    """Return the mean of the run's first reports, once enough others have followed."""
    enough = name in series and len(series[name].recent) >= 2 * WINDOW
    return series[name].beginning() if enough else None


_CHECKS = {
    "ppo": (
        _kl,
        _overoptimized,
        _hardly_moved,
        _falling_on_eval,
        _never_ends,
        _shrinking,
        _entropy,
        _repeats,
        _clipped,
        _critic,
    )
}
"""The checks of each kind of stage beside the one that all have, the gravest first."""
