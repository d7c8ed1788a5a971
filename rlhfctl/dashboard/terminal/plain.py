"""Print events as plain text for pipes and log files: one line per event, `[stage]` first, so that grep finds it.

Writes to its stream; reads nothing. Progress lines are limited by the events' own times, so that equal events give
equal output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from rlhfctl.dashboard.causes import key_of
from rlhfctl.dashboard.state import RunState
from rlhfctl.dashboard.text import duration, number, one_line, quoted, setting, visible, work_left
from rlhfctl.events import (
    CheckpointSaved,
    Event,
    Metrics,
    Note,
    Progress,
    RunStarted,
    RunStopped,
    Sample,
    StageFinished,
    StageStarted,
    StageWaiting,
    VerdictReached,
    Warned,
    Working,
)
from rlhfctl.metrics import log_labels, ranked, step_name

OTHER_METRICS = 4
"""Number of metrics without a rank that are shown after the ranked ones."""

PROGRESS_EVERY_S = 5.0
"""Least seconds between two progress lines of a stage that reports nothing else."""

WORK_AFTER_S, WORK_EVERY_S = 5.0, 30.0
"""Seconds of work beside a stage's steps until its first line, and between its next lines. Its end has a line, too."""


class PlainPrinter:
    """Write one line per event to `stream` and flush it. This is a listener.

    `history`: records of the run's earlier attempts, because alarms compare with the beginning.
    """

    def __init__(self, stream: TextIO, history: Iterable[Mapping[str, Any]] = ()) -> None:
        self.stream = stream
        self._units: dict[str, str] = {}  # stage -> name of one step
        self._last_time: dict[str, float] = {}
        self._last_step: dict[str, int] = {}
        self._worked: dict[tuple[str, str], float] = {}  # (stage, work) -> seconds of work at its last line
        self._state = RunState()
        for record in history:
            self._state.feed(record)
        self._alarms: dict[tuple[str, str], str] = {}  # (stage, what stays the same in it) -> alarm that holds

    def __call__(self, event: Event, /) -> None:
        self._state.feed(event.to_record())
        match event:
            case StageStarted():
                self._started(event)
            case Progress():
                self._progress(event)
            case Working():
                self._working(event)
            case Metrics():
                self._metrics(event)
            case Sample():
                parts = [f"sample {self._unit(event.stage)} {event.step}"]
                parts += [f"prompt={quoted(event.prompt)}", f"response={quoted(event.response)}"]
                if event.reference is not None:
                    parts.append(f"reference={quoted(event.reference)}")
                parts += [f"{name}={number(score)}" for name, score in event.scores.items()]
                self._line(event, " ".join(parts))
            case Warned():
                self._line(event, f"warning: {one_line(event.message)}")
            case Note():
                self._line(event, f"note {one_line(event.message)}")
            case CheckpointSaved():
                self._line(event, f"checkpoint {self._unit(event.stage)} {event.step} {event.path}")
            case StageFinished(skipped=True):
                self._line(event, f"skipped: already complete in {event.path}")
            case StageFinished():
                shown = assignments(event.stage, event.metrics)
                self._line(event, f"finished in {duration(event.seconds)}{f' ({shown})' if shown else ''} {event.path}")
            case StageWaiting():
                self._line(event, f"waiting: {one_line(event.message)}")
            case VerdictReached():
                self._line(event, f"verdict {one_line(event.sentence)}")
            case RunStarted() | RunStopped():
                pass  # a note and the command's error message say the same
            case _:
                self._line(event, event.kind)

    def _started(self, event: StageStarted) -> None:
        self._last_time.pop(event.stage, None)
        self._last_step.pop(event.stage, None)
        parts = ["started"]
        if event.total_steps is not None:
            parts.append(f"steps={event.total_steps}")
        if event.resumed_from is not None:
            parts.append(f"resumed_from={event.resumed_from}")
        self._line(event, " ".join(parts))
        if event.settings:
            pairs = (f"{visible(str(key))}={setting(value)}" for key, value in event.settings.items())
            self._line(event, "settings " + " ".join(pairs))

    def _progress(self, event: Progress) -> None:
        self._units[event.stage] = event.unit
        if self._last_step.get(event.stage) == event.step:
            return  # the metrics line just printed has the step
        last = self._last_time.get(event.stage)
        recent = last is not None and abs(event.time - last) < PROGRESS_EVERY_S
        if recent and event.step != event.total:
            return
        self._last_time[event.stage] = event.time
        self._last_step[event.stage] = event.step
        self._line(event, self._where(event.stage, event.step, event.total, event.eta_s))

    def _working(self, event: Working) -> None:
        what = (event.stage, event.what)
        last = self._worked.get(what)
        if event.over:
            self._worked.pop(what, None)
            if event.seconds >= WORK_AFTER_S:
                self._line(event, f"{event.what}: done in {duration(event.seconds)}")
        elif event.seconds >= (WORK_AFTER_S if last is None else last + WORK_EVERY_S):
            self._worked[what] = event.seconds
            count = f"{event.unit} {event.done}/{event.total}" if event.total is not None else "under way"
            left = work_left(event.done, event.total, event.seconds)
            eta = f" eta {duration(left)}" if left is not None else ""
            self._line(event, f"{event.what}: {count}{eta}")

    def _metrics(self, event: Metrics) -> None:
        where = self._where(event.stage, event.step, event.total, event.eta_s)
        if event.split == "train":
            self._last_time[event.stage] = event.time
            self._last_step[event.stage] = event.step
        else:
            where = f"{event.split} {where}"
        shown = assignments(event.stage, event.values)
        self._line(event, f"{where} {shown}" if shown else where)
        self._tell_alarms(event)

    def _tell_alarms(self, event: Metrics) -> None:
        """Write a line for each alarm of the stage that begins, and for each that no longer holds."""
        holding = {(stage, key_of(said)): said for stage, said in self._state.alarms() if stage == event.stage}
        for key in [key for key in holding if key not in self._alarms]:
            self._line(event, f"alarm: {one_line(holding[key])}")
        for key in [key for key in self._alarms if key[0] == event.stage and key not in holding]:
            self._line(event, f"alarm over: {one_line(self._alarms.pop(key))}")
        self._alarms |= holding

    def _where(self, stage: str, step: int, total: int | None, eta_s: float | None) -> str:
        total_text = f"/{total}" if total is not None else ""
        eta = f" eta {duration(eta_s)}" if eta_s is not None and math.isfinite(eta_s) else ""
        return f"{self._unit(stage)} {step}{total_text}{eta}"

    def _unit(self, stage: str) -> str:
        return self._units.get(stage) or step_name(stage)

    def _line(self, event: Event, text: str) -> None:
        # a log that cannot hold a character must not end the training that wrote it
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        line = f"[{event.stage}] {visible(text)}"
        self.stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self.stream.flush()


def chosen_metrics(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    """Choose the metrics to show: the ranked ones (or their eval_ twins) in order, then up to 4 others."""
    listed = [metric.name for metric in ranked(stage, "log")]
    names = [name for name in (*listed, *(f"eval_{name}" for name in listed)) if name in values]
    names = list(dict.fromkeys(names))
    others = [name for name in values if name not in names]
    return {name: values[name] for name in (*names, *others[:OTHER_METRICS])}


def assignments(stage: str, values: Mapping[str, float]) -> str:
    """Write the metrics to show as `loss=2.31 lr=9.1e-4`, which grep finds."""
    shown, labels = chosen_metrics(stage, values), log_labels()
    return " ".join(f"{labels.get(name, name)}={number(value)}" for name, value in shown.items())
