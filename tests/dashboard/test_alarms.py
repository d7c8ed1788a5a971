"""Alarms: for each, a run that raises it and a similar one that does not; a healthy run raises none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from streams import ppo_values, until_ppo

from rlhfctl.dashboard.alarms import alarms
from rlhfctl.dashboard.series import Series
from rlhfctl.dashboard.terminal.screen import Screen

Values = Callable[[int], float | None]
UPDATES = 22


def raised(
    updates: int = UPDATES, settings: dict[str, Any] | None = None, stage: str = "ppo", **changed: Values
) -> list[str]:
    """Return the alarms of a healthy run in which these metrics are changed."""
    series: dict[str, Series] = {}
    for step in range(1, updates + 1):
        values = ppo_values(step, **{name: value(step) for name, value in changed.items()})
        for name, value in values.items():
            series.setdefault(name, Series()).add(step, math.nan if value is None else value)
    return alarms(stage, series, {"kl_coef": 0.05, "stop_token": "eos"} | (settings or {}))


def test_a_run_that_goes_well_raises_none() -> None:
    for updates in range(1, 41):
        assert raised(updates) == []


def always(value: float | None) -> Values:
    return lambda step: value


def only_at(update: int, value: float | None, otherwise: float) -> Values:
    return lambda step: value if step == update else otherwise


@pytest.mark.parametrize(
    ("words", "bad", "good"),
    [
        ("KL is", {"kl": always(12.0)}, {"kl": always(9.0)}),
        ("KL is", {"kl": always(40.0), "length": always(100.0)}, {"kl": always(25.0), "length": always(100.0)}),
        ("KL more than doubled", {"kl": lambda step: 1.2 ** (step - 10)}, {"kl": lambda step: 1.05 ** (step + 12)}),
        ("hardly moved", {"kl": always(0.02)}, {"kl": always(0.08)}),
        ("hardly moved", {"kl": only_at(UPDATES, 3.0, 0.01)}, {"kl": lambda step: 0.01 * step}),
        ("end by themselves", {"eos_rate": always(0.04)}, {"eos_rate": always(0.12)}),
        ("responses shrank", {"length": lambda step: 20.0 - 0.8 * step}, {"length": lambda step: 20.0 - 0.4 * step}),
        ("hardly varies", {"token_entropy": lambda step: 0.85**step}, {"token_entropy": lambda step: 0.97**step}),
        ("repeat themselves", {"repetition": lambda step: 0.02 + 0.02 * step}, {"repetition": lambda step: 0.3}),
        ("repeat themselves", {"repetition": lambda step: 0.02 * step}, {"repetition": only_at(UPDATES, 0.9, 0.02)}),
        ("PPO's clip", {"clip_fraction": always(0.35)}, {"clip_fraction": only_at(UPDATES, 0.6, 0.2)}),
        (
            "worse than guessing",
            {"explained_variance": always(-0.1)},
            {"explained_variance": only_at(UPDATES - 4, 0.1, -0.1)},
        ),
        ("score is not a number", {"score": only_at(UPDATES, None, 1.0)}, {"score": only_at(9, None, 1.0)}),
        ("grad_norm, kl are", {"kl": always(math.inf), "grad_norm": always(math.nan)}, {"kl": always(1.0)}),
    ],
)
def test_an_alarm_is_raised_and_not_without_its_cause(
    words: str, bad: dict[str, Values], good: dict[str, Values]
) -> None:
    (said,) = raised(**bad)
    assert words in said
    assert "ry " in said or "fine if" in said  # it says what to try
    assert raised(**good) == []


def test_one_odd_update_raises_none() -> None:
    for name, value in (
        ("kl", 40.0),
        ("eos_rate", 0.0),
        ("length", 1.0),
        ("token_entropy", 0.0),
        ("clip_fraction", 0.9),
    ):
        odd: Values = lambda step, name=name, value=value: value if step == UPDATES else ppo_values(step)[name]  # type: ignore[misc]  # noqa: E731
        assert raised(**{name: odd}) == [], name


def test_a_policy_that_waits_for_its_critic_is_not_still() -> None:
    assert len(raised(kl=lambda step: 0.0)) == 1
    assert raised(settings={"policy_starts_after": 10}, kl=lambda step: 0.0) == []


def test_a_leash_that_the_recipe_left_out_is_not_missed() -> None:
    assert raised(settings={"kl_coef": 0}, kl=lambda step: 40.0) == []  # a function checks the answer
    assert raised(settings={"kl_coef": 0, "learned_reward": False}, kl=lambda step: 40.0) == []
    (said,) = raised(settings={"kl_coef": 0, "learned_reward": True}, kl=lambda step: 40.0)
    assert "KL is 40 nats per response" in said
    assert raised(settings={"stop_token": None}, eos_rate=lambda step: 0.0) == []
    assert len(raised(settings={"stop_token": None, "stop_strings": ["\n"]}, eos_rate=lambda step: 0.0)) == 1


def test_what_only_ppo_has_is_an_alarm_in_ppo_only() -> None:
    assert raised(stage="compare", kl=lambda step: 40.0) == []
    assert len(raised(stage="sft", score=lambda step: math.nan)) == 1


def on_eval(*scores: float, training_rises: bool = True) -> list[str]:
    series = {"score": Series(), "eval_score": Series(), "raw_score_std": Series()}
    for step in range(1, 10 * len(scores)):
        series["score"].add(step, 0.02 * step if training_rises else 1.0 - 0.01 * step)
        series["raw_score_std"].add(step, 0.2)
    for index, score in enumerate(scores):
        series["eval_score"].add(10 * index, score)
    return alarms("ppo", series, {})


def test_training_up_and_eval_down() -> None:
    (said,) = on_eval(0.0, 0.5, 1.0, 0.7, 0.6, 0.5)
    assert "fell from 1 (update 20) to 0.5" in said
    assert on_eval(0.0, 0.5, 1.0, 0.7, 0.6) == []  # not for long enough
    assert on_eval(0.0, 0.5, 1.0, 0.95, 0.6, 0.5) == []  # within what scatters
    assert on_eval(0.0, 0.5, 1.0, 0.7, 0.6, 0.5, training_rises=False) == []  # both fall: nothing is learned by heart
    assert on_eval(1.0, 0.9, 0.8, 0.7, 0.6, 0.5) == []  # there was no gain to lose


def watched_by(heldout: Sequence[float], *, gold: Sequence[float] = (), error: float = 0.05) -> list[str]:
    """The alarms of a run whose reward rises in each evaluation, with this held-out reward."""
    series: dict[str, Series] = {}
    for index, value in enumerate(heldout):
        values = {"eval_score": 0.2 * index, "eval_heldout": value, "eval_score_se": 0.05, "eval_heldout_se": error}
        values |= {"eval_gold": gold[index]} if gold else {}
        for name, number in values.items():
            series.setdefault(name, Series()).add(10 * index, number)
    return alarms("ppo", series, {"kl_coef": 0})


PEAK = (0.0, 0.5, 1.0, 1.0, 1.0, 0.6, 0.5, 0.5)


def test_a_policy_that_exploits_its_reward() -> None:
    (said,) = watched_by(PEAK)
    assert "the reward rose from 0.6 to 1.2, but the held-out reward fell from 1 (about update 30) to 0.533" in said
    assert "use: best" in said
    assert watched_by(sorted(PEAK)) == []  # both rise
    assert watched_by(PEAK, error=0.2) == []  # within noise
    assert watched_by(PEAK[:6]) == []  # one low evaluation is not enough
    assert watched_by((*PEAK, 0.9, 1.0, 1.1)) == []  # it came back, and the alarm goes


def test_gold_raises_and_hides_no_alarm() -> None:
    falling, rising = PEAK, sorted(PEAK)
    assert watched_by(rising, gold=falling) == []
    assert watched_by(falling, gold=rising) == watched_by(falling)


def test_no_held_out_reward_means_no_such_alarm() -> None:
    series = {"eval_score": Series(), "eval_score_se": Series()}
    for step in range(9):
        series["eval_score"].add(step, float(step))
        series["eval_score_se"].add(step, 0.1)
    assert alarms("ppo", series, {}) == []


def test_the_screen_says_it_and_stops_saying_it() -> None:
    screen = Screen()
    for record in until_ppo():
        screen.state.feed(record)
    assert screen.state.alarms() == []
    metrics = {"event": "metrics", "stage": "ppo", "split": "train", "total": 40}
    screen.state.feed({**metrics, "time": 1100.0, "step": 23, "values": {"score": None}})
    assert [stage for stage, _ in screen.state.alarms()] == ["ppo"]
    screen.state.feed({**metrics, "time": 1102.0, "step": 24, "values": {"score": 0.6}})
    assert screen.state.alarms() == []
