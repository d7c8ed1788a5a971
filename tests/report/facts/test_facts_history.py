"""A run's events over several commands: what replaces what, which warnings still hold, when alarms held."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.report.facts.history import History


def history_of(*events: dict[str, Any], tmp_path: Path) -> History:
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps({"time": 1.0, **event}) + "\n" for event in events), encoding="utf-8")
    return History.read(file)


def started(stage: str = "ppo", resumed: int | None = None, **settings: Any) -> dict[str, Any]:
    return {"event": "started", "stage": stage, "resumed_from": resumed, "settings": settings}


def metrics(step: int, stage: str = "ppo", split: str = "train", **values: Any) -> dict[str, Any]:
    return {"event": "metrics", "stage": stage, "step": step, "values": values, "split": split}


def run_started(*stages: str) -> dict[str, Any]:
    return {"event": "run_started", "stage": "run", "name": "r", "stages": list(stages)}


def test_a_resumed_step_replaces_what_came_after_it(tmp_path: Path) -> None:
    found = history_of(
        started(), metrics(1, score=1.0), metrics(2, score=2.0), metrics(3, score=3.0),
        started(resumed=1), metrics(2, score=20.0), tmp_path=tmp_path,
    )  # fmt: skip
    assert found.stages["ppo"].curves["score"] == [(1, 1.0), (2, 20.0)]


def test_a_stage_that_starts_anew_forgets_its_curves(tmp_path: Path) -> None:
    found = history_of(
        started(kl_coef=0.1), metrics(1, score=1.0), metrics(2, score=2.0), started(kl_coef=0.2), metrics(1, score=9.0),
        tmp_path=tmp_path,
    )  # fmt: skip
    assert found.stages["ppo"].curves["score"] == [(1, 9.0)]
    assert found.stages["ppo"].settings == {"kl_coef": 0.2}


def test_what_is_measured_after_training_is_no_curve(tmp_path: Path) -> None:
    found = history_of(started("reward"), metrics(0, "reward", "heldout", heldout_accuracy=0.7), tmp_path=tmp_path)
    assert found.stages["reward"].measured == {"heldout_accuracy": 0.7}
    assert found.stages["reward"].curves == {}


def test_a_number_that_was_not_finite_stays_in_its_place(tmp_path: Path) -> None:
    found = history_of(started(), metrics(1, score=None), metrics(2, score=1.0), tmp_path=tmp_path)
    first, second = found.stages["ppo"].curves["score"]
    assert first[0] == 1 and math.isnan(first[1]) and second == (2, 1.0)


def warning(stage: str, message: str) -> dict[str, Any]:
    return {"event": "warning", "stage": stage, "message": message}


def test_warnings_of_an_earlier_command_go_with_the_stage_that_they_concern(tmp_path: Path) -> None:
    found = history_of(
        run_started("sft", "ppo"), warning("run", "old"), warning("sft", "kept"), started("sft"), warning("ppo", "x"),
        started("ppo"), run_started("sft", "ppo"), warning("run", "new"), warning("ppo", "before its start"),
        started("ppo"), warning("ppo", "twice"), warning("ppo", "twice"), tmp_path=tmp_path,
    )  # fmt: skip
    assert found.warnings() == [("run", "new"), ("sft", "kept"), ("ppo", "before its start"), ("ppo", "twice")]


def test_the_reason_of_the_last_command_alone_counts(tmp_path: Path) -> None:
    stop = {"event": "run_stopped", "stage": "run", "reason": "Ctrl-C"}
    assert history_of(run_started("sft"), stop, tmp_path=tmp_path).stopped == "Ctrl-C"
    assert history_of(run_started("sft"), stop, run_started("sft"), tmp_path=tmp_path).stopped == ""


@pytest.mark.parametrize(("until", "holds"), [(30, True), (45, False)])
def test_an_alarm_is_kept_with_its_first_and_last_step(tmp_path: Path, until: int, holds: bool) -> None:
    """KL is far away from update 11 to 30, and near again after that."""
    steps = range(1, until + 1)
    far = [metrics(step, kl=40.0 if 11 <= step <= 30 else 1.0, length=20.0) for step in steps]
    found = history_of(started(kl_coef=0.1), *far, tmp_path=tmp_path).alarms()
    alarm = next(one for one in found if "far from the reference" in one.sentence)
    assert alarm.holds is holds
    assert alarm.first == 13  # the median of five updates: three of them
    assert alarm.last == (30 if holds else 32)
    assert "kl_coef" in alarm.causes


def test_a_healthy_run_has_no_alarm(tmp_path: Path) -> None:
    steps = [metrics(step, kl=2.0, length=20.0, score=step / 40, eos_rate=0.9) for step in range(1, 41)]
    assert history_of(started(kl_coef=0.1), *steps, tmp_path=tmp_path).alarms() == []


def test_what_this_version_does_not_know_is_passed_over(tmp_path: Path) -> None:
    odd = {"event": "metrics", "stage": "ppo", "step": "three", "values": [1]}
    found = history_of({"event": "new", "stage": "ppo"}, odd, started(), metrics(1, score=True), tmp_path=tmp_path)
    assert math.isnan(found.stages["ppo"].curves["score"][0][1])
