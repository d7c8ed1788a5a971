"""Read a run's events into curves, warnings and alarms, over all commands that worked on the run.

Reads events.jsonl. A step that is reported again (after a kill) replaces what came after it, and a stage that starts
anew forgets its earlier curves and warnings, as they belong to weights that are no longer there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhfctl.dashboard.alarms import alarms
from rlhfctl.dashboard.causes import causes_of, key_of
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.dashboard.series import Series
from rlhfctl.dashboard.state import is_map, real, whole
from rlhfctl.report.facts.records import Alarm, Point

_AFTER_TRAINING = ("heldout", "test")  # splits that are no curve


@dataclass
class Told:
    """What events say of one stage."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    peak_memory: int | None = None

    def report(self, step: int, values: Mapping[str, Any], *, is_curve: bool) -> None:
        """Take in metrics of a step."""
        for name, given in values.items():
            value = real(given)
            if not is_curve:
                self.measured |= {name: value} if value is not None else {}
                continue
            points = self.curves.setdefault(name, [])
            while points and points[-1][0] >= step:
                points.pop()
            points.append((step, math.nan if value is None else value))


@dataclass
class History:
    """The stages of a run as its events tell of them."""

    stages: dict[str, Told] = field(default_factory=dict)
    announced: list[str] = field(default_factory=list)  # stages that commands wanted to bring up to date
    of_run: list[str] = field(default_factory=list)  # warnings that belong to no stage, of the last command
    stopped: str = ""
    _pending: dict[str, list[str]] = field(default_factory=dict)  # warnings of stages that have not started yet

    @classmethod
    def read(cls, file: Path) -> History:
        """Read events.jsonl; without the file the history is empty."""
        history = cls()
        for record in read_events(file) if file.is_file() else ():
            history.feed(record)
        history._settle()
        return history

    def feed(self, record: Mapping[str, Any]) -> None:
        """Take in one event. What this version does not know is passed over."""
        name, values = str(record.get("stage")), record.get("values")
        match record.get("event"):
            case "run_started":
                self._settle()
                self.of_run, self.stopped = [], ""
                listed = record.get("stages")
                named = [str(one) for one in listed] if isinstance(listed, list) else []
                self.announced = list(dict.fromkeys([*self.announced, *named]))
            case "run_stopped":
                self.stopped = str(record.get("reason") or "")
            case "started":
                self._started(name, record)
            case "metrics" if is_map(values) and (step := whole(record.get("step"))) is not None:
                is_curve = record.get("split") not in _AFTER_TRAINING
                self.stages.setdefault(name, Told()).report(step, values, is_curve=is_curve)
            case "warning":
                told = self.of_run if name == "run" else self._pending.setdefault(name, [])
                message = str(record.get("message"))
                told += [message] if message not in told else []
            case "finished" if not record.get("skipped"):
                self.stages.setdefault(name, Told()).peak_memory = whole(record.get("peak_memory"))
            case _:
                pass

    def _started(self, name: str, record: Mapping[str, Any]) -> None:
        if record.get("resumed_from") is None or name not in self.stages:
            self.stages[name] = Told()
        settings = record.get("settings")
        self.stages[name].settings = settings if is_map(settings) else {}

    def _settle(self) -> None:
        """Give the warnings of a command to their stages: a stage that started anew in it has forgotten its others."""
        for name, messages in self._pending.items():
            told = self.stages.setdefault(name, Told())
            told.warnings += [message for message in messages if message not in told.warnings]
        self._pending = {}

    def warnings(self) -> list[tuple[str, str]]:
        """Return stage and message of each warning that still concerns the run."""
        by_stage = [(name, message) for name, told in self.stages.items() for message in told.warnings]
        return [*(("run", message) for message in self.of_run), *by_stage]

    def alarms(self) -> list[Alarm]:
        """Return every alarm that held at some step, the ones that hold at the end first."""
        found = [alarm for name, told in self.stages.items() for alarm in _alarms(name, told)]
        return sorted(found, key=lambda alarm: not alarm.holds)


def _alarms(name: str, told: Told) -> Iterator[Alarm]:
    """Play a stage's metrics again, step by step, and keep from when to when each alarm held."""
    steps = sorted({step for points in told.curves.values() for step, _ in points})
    waiting = {metric: iter(points) for metric, points in told.curves.items()}
    ahead = {metric: next(points, None) for metric, points in waiting.items()}
    series: dict[str, Series] = {}
    found: dict[str, Alarm] = {}
    for step in steps:
        for metric, point in ahead.items():
            if point is not None and point[0] == step:
                series.setdefault(metric, Series()).add(*point)
                ahead[metric] = next(waiting[metric], None)
        for sentence in alarms(name, series, told.settings):
            key = key_of(sentence)
            first = found[key].first if key in found else step
            found[key] = Alarm(name, sentence, first, step, step == steps[-1], causes_of(sentence))
    yield from found.values()
