"""Build the state of a run from its event records: stages, steps, time left, metrics, samples, warnings.

Memory is bounded for any length of run and any events: a few numbers per stage, and the series and samples of the
stages that reported last. The caller passes the time. Records are not trusted: a field of the wrong type is skipped.
Reads no file and draws nothing (screen.py draws).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from rlhfctl.dashboard.alarms import alarms
from rlhfctl.dashboard.series import Series
from rlhfctl.dashboard.text import duration
from rlhfctl.metrics import kind

_HANGS_AFTER_S = 10.0  # a shorter step counts as hanging after this long without an event
KEPT_STAGES = 1000  # per run: hundreds of rounds
KEPT_DETAILS = 12  # stages that keep settings, series and samples: the last to report
KEPT_SAMPLES, KEPT_METRICS = 4, 80  # per stage
KEPT_WARNINGS = 20  # per run
_LONGEST_NAME = 200  # characters of a stage's name or unit
_NAMED = 4  # coming stages named beside the time left; further ones are counted
_WORKS = 8  # pieces of work under way at the same time, nested
_SETTINGS = ("kl_coef", "stop_token", "stop_strings", "policy_starts_after")  # the settings that alarms read


@dataclass
class Stage:
    """The state of one stage."""

    name: str
    state: str = "next"  # next, now, done, skipped, waiting (for people)
    started: bool = False  # False while the stage at work still prepares its first step
    step: int = 0
    total: int | None = None
    unit: str = "step"
    began: float | None = None
    resumed_from: int | None = None
    eta: tuple[float, float] | None = None  # (seconds left, time of that report)
    pace: tuple[float, int] | None = None  # (time, step) of the first progress of this attempt
    took: float | None = None  # seconds of the last complete run of this stage
    seconds: float | None = None  # seconds of this run of the stage, once finished
    settings: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    samples: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))

    def forget_details(self) -> None:
        """Drop settings, series and samples, which take memory. The stage's state and times stay."""
        self.settings = {}
        self.series.clear()
        self.samples.clear()

    def left(self, now: float) -> float | None:
        """Return the seconds to the end of the stage. While a step hangs, the number does not go down."""
        if self.eta is None:
            return None
        left, reported_at = self.eta
        per_step = left / max(1, self.total - self.step) if self.total is not None else left
        return max(0.0, left - min(now - reported_at, max(per_step, _HANGS_AFTER_S)))


class RunState:
    """The state of a run, built from its events."""

    def __init__(self) -> None:
        self.name = ""
        self.stages: dict[str, Stage] = {}  # in order of appearance
        self._detailed: dict[str, Stage] = {}  # stages that keep their details, the last to report at the end
        self.order: list[str] = []  # stages of this command, from its run_started event
        self.current: Stage | None = None
        self.began: float | None = None
        self.last: float | None = None  # time of the newest event
        self.stopped: str | None = None
        self.note = ""
        self.verdict: tuple[str, str] | None = None  # (verdict, sentence about it) of this command
        self.verdicts: dict[str, str] = {}  # stage -> the verdict of its last attempt
        self.work: dict[tuple[str, str], Mapping[str, Any]] = {}  # by (stage, name); the innermost last
        self.checkpoint: tuple[str, int, float] | None = None  # stage, step and time of the newest one
        self.warnings: deque[tuple[str, str]] = deque(maxlen=KEPT_WARNINGS)  # stage and message, the newest last

    # ------------------------------------------------------------ events in

    def feed(self, record: Mapping[str, Any]) -> None:
        """Take in one event, as `Event.to_record` gives it. A record that is not understood is skipped."""
        name, time = record.get("stage"), real(record.get("time"))
        if not isinstance(name, str) or time is None:
            return
        name = name[:_LONGEST_NAME]
        self.last = time if self.last is None else max(time, self.last)
        if self.began is None:
            self.began = time
        match record.get("event"):
            case "run_started":
                self._run_started(record, time)
            case "run_stopped":
                self.stopped = str(record.get("reason") or "")
            case "started":
                self._started(self._with_details(name), record, time)
            case "progress":
                self._progress(self._stage(name), record, time)
            case "working":
                self._working(name, record, time)
            case "metrics":
                self._metrics(self._with_details(name), record, time)
            case "checkpoint":
                step = whole(record.get("step"))
                self.checkpoint = self.checkpoint if step is None else (name, step, time)
            case "sample":
                self._with_details(name).samples.append(record)
            case "warning":
                warning = (name, str(record.get("message")))
                if warning in self.warnings:  # a repeated warning becomes the newest
                    self.warnings.remove(warning)
                self.warnings.append(warning)
            case "verdict":
                self.verdict = (str(record.get("verdict")), str(record.get("sentence")))
                if name in self.stages:
                    self.verdicts[name] = str(record.get("verdict"))[:_LONGEST_NAME]
            case "note":
                self.note = str(record.get("message"))
            case "waiting":
                self._stage(name).state = "waiting"
                self.stopped = f"waiting: {record.get('message')}"
            case "finished":
                self._finished(self._stage(name), record)
            case _:
                pass

    def _run_started(self, record: Mapping[str, Any], time: float) -> None:
        names = record.get("stages")
        self.name = str(record.get("name") or "")
        names = names[:KEPT_STAGES] if isinstance(names, list | tuple) else []
        self.order = list(dict.fromkeys(str(name)[:_LONGEST_NAME] for name in names))
        self.began, self.stopped, self.current, self.note = time, None, None, ""
        self.checkpoint = self.verdict = None
        self.work.clear()
        for name in self.order:
            stage = self._stage(name)
            stage.state, stage.started, stage.seconds, stage.eta = "next", False, None, None

    def _stage(self, name: str) -> Stage:
        """Return the stage of this name. A new one replaces the oldest stage that this command does not run."""
        if name not in self.stages:
            if len(self.stages) >= KEPT_STAGES:
                due = {*self.order, *([self.current.name] if self.current is not None else [])}
                oldest = next((other for other in self.stages if other not in due), None)
                if oldest is None:
                    return Stage(name)  # no room: its events change nothing
                del self.stages[oldest]
                self._detailed.pop(oldest, None)
            self.stages[name] = Stage(name)
        return self.stages[name]

    def _with_details(self, name: str) -> Stage:
        """Return the stage that reports now. The stage whose last report is oldest drops its details."""
        stage = self._stage(name)
        self._detailed.pop(name, None)
        if self.stages.get(name) is stage:
            self._detailed[name] = stage
        if len(self._detailed) > KEPT_DETAILS:
            self._detailed.pop(next(iter(self._detailed))).forget_details()
        return stage

    def _at_work(self, stage: Stage, time: float) -> None:
        """Mark a stage as the one at work; no other stage is."""
        for other in self.stages.values():
            if other.state == "now":
                other.state = "next"
        stage.state, stage.began, self.current = "now", time, stage

    def _started(self, stage: Stage, record: Mapping[str, Any], time: float) -> None:
        began = time if stage.started or stage.state != "now" else stage.began  # preparation counts as its time
        self._at_work(stage, time)
        self.work.clear()
        self.checkpoint = None
        self.verdicts.pop(stage.name, None)
        resumed = whole(record.get("resumed_from"))
        if resumed is None:
            stage.series.clear()
            stage.samples.clear()
        else:
            for series in stage.series.values():
                series.cut(resumed)
        stage.began, stage.started, stage.resumed_from = began, True, resumed
        stage.step, stage.total = resumed or 0, whole(record.get("total_steps"))
        stage.eta = stage.pace = stage.seconds = None
        settings = record.get("settings")
        stage.settings = {key: settings[key] for key in _SETTINGS if key in settings} if is_map(settings) else {}
        self.note = ""

    def _working(self, name: str, record: Mapping[str, Any], time: float) -> None:
        """Note work beside a stage's steps. A stage with such work is at work before its started event."""
        what = str(record.get("what"))
        if record.get("over"):
            self.work.pop((name, what), None)
            return
        if (name, what) in self.work or len(self.work) < _WORKS:
            self.work[name, what] = record
        if name in self.order and self.stages[name].state == "next":
            stage = self.stages[name]
            stage.started, stage.step, stage.total, stage.resumed_from = False, 0, None, None
            self._at_work(stage, time)

    def _progress(self, stage: Stage, record: Mapping[str, Any], time: float) -> None:
        self._moved(stage, record, time)
        stage.unit = str(record.get("unit") or stage.unit)[:_LONGEST_NAME]
        if stage.pace is None:
            stage.pace = (time, stage.step)
        elif stage.eta is None or real(record.get("eta_s")) is None:
            since, first = stage.pace
            if stage.total is not None and stage.step > first and time > since:  # no eta_s in the record: use the pace
                stage.eta = ((time - since) / (stage.step - first) * max(0, stage.total - stage.step), time)

    def _moved(self, stage: Stage, record: Mapping[str, Any], time: float) -> None:
        """Update the step, the total and the time left from a progress or metrics record."""
        if stage.state != "now":
            self._at_work(stage, time)
        stage.started = True
        step, total, eta = whole(record.get("step")), whole(record.get("total")), real(record.get("eta_s"))
        stage.step = stage.step if step is None else step
        stage.total = stage.total if total is None else total
        if eta is not None:
            stage.eta = (eta, time)

    def _metrics(self, stage: Stage, record: Mapping[str, Any], time: float) -> None:
        step, values = whole(record.get("step")), record.get("values")
        if step is None or not is_map(values):
            return
        if record.get("split") in ("train", "eval"):  # metrics measured after training are not progress
            self._moved(stage, record, time)
        for name, value in values.items():
            if name not in stage.series:
                if len(stage.series) >= KEPT_METRICS:
                    continue
                stage.series[name] = Series()
            found = real(value)
            stage.series[name].add(step, math.nan if found is None else found)

    def _finished(self, stage: Stage, record: Mapping[str, Any]) -> None:
        self.work.clear()
        stage.seconds = real(record.get("seconds"))
        skipped = bool(record.get("skipped"))
        if not skipped and stage.resumed_from is None:
            stage.took = stage.seconds
        stage.state, stage.eta = "skipped" if skipped else "done", None
        if not skipped or self.current is None:
            self.current = stage

    # ------------------------------------------------------------ results out

    @property
    def over(self) -> bool:
        """Tell whether every stage of the command is done, or the command has stopped."""
        if self.stopped is not None:
            return True
        return bool(self.order) and all(self.stages[name].state in ("done", "skipped") for name in self.order)

    def no_more_comes(self, why: str) -> None:
        """Note that the run's process has ended: the run has stopped, unless every stage is done.

        Runs of older versions do not state their stages. Then the stages that began count.
        """
        if not self.order and all(stage.state in ("done", "skipped") for stage in self.stages.values()):
            self.order = list(self.stages)
        if not self.over and self.last is not None:
            self.stopped = why

    def time_left(self, now: float) -> str:
        """Describe the time left for the whole run.

        A coming stage counts with the time of its last run, else with the time of the last stage of its kind (in the
        round before). A stage with neither is listed by name.
        """
        since = 0.0 if self.began is None else (self.last or 0.0) - self.began
        if self.over:
            return f"{'done' if self.stopped is None else 'stopped'} after {duration(since)}"
        running = next((stage for stage in self.stages.values() if stage.state == "now"), None)
        coming = [self.stages[name] for name in self.order if self.stages[name].state == "next"]
        took = {kind(stage.name): stage.took for stage in self.stages.values() if stage.took is not None}
        expected = {stage.name: took.get(kind(stage.name)) if stage.took is None else stage.took for stage in coming}
        left: float | None = 0.0
        if running is not None:
            left = running.left(now)
            before = took.get(kind(running.name)) if running.took is None else running.took
            if left is None and before is not None and running.began is not None and not running.resumed_from:
                left = max(0.0, before - (now - running.began))
        unknown = [name for name, seconds in expected.items() if seconds is None]
        known = sum(seconds for seconds in expected.values() if seconds is not None)
        if running is None and not coming:
            return ""
        if left is None or (running is None and not known):
            text = "?"
        elif known:
            text = f"about {duration(left + known)}"
        else:
            text = duration(left)
        if len(unknown) > _NAMED:
            unknown = [*unknown[: _NAMED - 1], f"{len(unknown) - _NAMED + 1} more stages"]
        return f"time left {text}" + (f" + {', '.join(unknown)}" if unknown else "")

    def alarms(self) -> list[tuple[str, str]]:
        """Return (stage, sentence) for every alarm that holds now, the stage at work first."""
        stages = sorted(
            (stage for stage in self.stages.values() if stage.series), key=lambda stage: stage is not self.current
        )
        return [(stage.name, said) for stage in stages for said in alarms(stage.name, stage.series, stage.settings)]


def real(value: Any) -> float | None:
    """Return a finite number as a float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer too large for a float
        return None


def whole(value: Any) -> int | None:
    """Return a finite number as an integer, or None for anything else."""
    found = real(value)
    return None if found is None else int(found)


def is_map(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether a value of a record maps names to values."""
    return isinstance(value, Mapping)
