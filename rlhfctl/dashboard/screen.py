"""The screen of a run: fed event records one by one, it draws what they amount to in any width and height.

Above: the run, its stages (done, now, next) and the time left. Below: the stage's key metrics as number, trend and
chart, the last sample beside the reference's, and alarms. Reads nothing, prints nothing, and keeps bounded memory
however long the run; the clock is handed in. Who shows it: live.py during `run`, watch.py from `events.jsonl`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from rich.text import Text

from rlhfctl.dashboard import draw
from rlhfctl.dashboard.alarms import alarms
from rlhfctl.dashboard.draw import Signs
from rlhfctl.dashboard.plain import duration, number, work_left
from rlhfctl.dashboard.series import Axis, Series
from rlhfctl.events import transcript

TWO_COLUMNS = 120  # from this width on metrics stand to the left of samples and alarms
STALE_S = 30.0  # without an event for longer, the screen says so
WORK_SHOWN_S = 0.5  # work that is over sooner would only flicker
_STAGES, _METRICS, _SAMPLES, _WARNINGS = 12, 80, 4, 20  # how many are kept: of stages, a stage, a stage, a run
_WORKS = 8  # pieces of work, one inside the other
_LABEL, _VALUE, _TREND, _RANGE = 18, 8, 9, 18  # widths of a metric's columns
_BAR, _LEAST_BAR = 60, 4  # cells
_TALLEST = 4  # lines that one metric takes where there is room
_LEAST_SAMPLE = 8  # lines: rule, two of a prompt, heads, four of responses
_SETTINGS = ("kl_coef", "stop_token", "stop_strings")  # what alarms look at


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. `better`: 1 up, -1 down, 0 neither."""

    name: str
    label: str
    better: int
    meaning: str


METRICS: dict[str, tuple[Metric, ...]] = {
    "sft": (
        Metric("loss", "loss", -1, "how surprised the model is"),
        Metric("eval_loss", "eval loss", -1, "the same on rows held aside"),
        Metric("mean_token_accuracy", "token accuracy", 1, "share of tokens guessed right"),
        Metric("grad_norm", "gradient norm", 0, "size of a step before clipping"),
        Metric("learning_rate", "learning rate", 0, ""),
    ),
    "reward": (
        Metric("loss", "loss", -1, "0.69 is a coin's"),
        Metric("accuracy", "accuracy", 1, "share of pairs ranked as people did"),
        Metric("eval_accuracy", "eval accuracy", 1, "the same on pairs held aside"),
        Metric("heldout_accuracy", "held-out accuracy", 1, "on pairs of unseen prompts"),
        Metric("margin", "margin", 1, "score of chosen less rejected"),
        Metric("grad_norm", "gradient norm", 0, "size of a step before clipping"),
        Metric("learning_rate", "learning rate", 0, ""),
    ),
    "ppo": (
        Metric("score", "score", 1, "what the reward gives, on average"),
        Metric("kl", "KL", 0, "nats from the reference, a response"),
        Metric("eval_score", "eval score", 1, "the score on prompts held aside"),
        Metric("length", "length", 0, "tokens a response"),
        Metric("eos_rate", "responses that end", 1, "share that is not cut off"),
        Metric("token_entropy", "entropy", 0, "how freely it picks tokens, in nats"),
        Metric("explained_variance", "critic explains", 1, "1 foresees all, below 0 misleads"),
        Metric("clip_fraction", "clipped", 0, "share of tokens that PPO holds back"),
        Metric("eval_kl", "eval KL", 0, "KL on prompts held aside"),
        Metric("eval_gold", "eval gold", 1, "the task's true preference"),
        Metric("value_loss", "critic's loss", -1, ""),
        Metric("episodes_per_s", "episodes a second", 1, "speed"),
    ),
    "compare": (
        Metric("win_rate", "win rate", 1, "share of prompts won, ties half"),
        Metric("delta", "score gained", 1, "policy less reference"),
        Metric("kl", "KL", 0, "nats from the reference, a response"),
        Metric("length", "length", 0, "tokens a response"),
    ),
}
"""Each stage's key metrics, in order of worth: as many as fit are shown."""


@dataclass
class Stage:
    """What is known of one stage."""

    name: str
    state: str = "next"  # next, now, done, skipped
    started: bool = False  # its steps; while it is at work without, it gets ready
    step: int = 0
    total: int | None = None
    unit: str = "step"
    began: float | None = None
    resumed_from: int | None = None
    eta: tuple[float, float] | None = None  # seconds left, and when that was said
    pace: tuple[float, int] | None = None  # the first progress of this attempt: when, and which step
    took: float | None = None  # seconds, of the last time that it ran to its end
    seconds: float | None = None  # seconds, as finished now
    settings: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    samples: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=_SAMPLES))


class Screen:
    """The state of a run, as its events tell it."""

    def __init__(self) -> None:
        self.name = ""
        self.stages: dict[str, Stage] = {}  # all that were heard of, in order of appearance
        self.order: list[str] = []  # those of this command, once it has said so
        self.current: Stage | None = None
        self.began: float | None = None
        self.last: float | None = None  # time of the newest event
        self.stopped: str | None = None
        self.note = ""
        self.work: dict[tuple[str, str], Mapping[str, Any]] = {}  # (stage, what) under way, the innermost last
        self.checkpoint: tuple[str, int, float] | None = None  # stage, step and time of the newest one
        self.warnings: deque[tuple[str, str]] = deque(maxlen=_WARNINGS)  # stage and message, the newest last

    # ------------------------------------------------------------ what is fed

    def feed(self, record: Mapping[str, Any]) -> None:
        """One event as `Event.to_record` gives it. What is not understood is passed over."""
        name, time = record.get("stage"), _real(record.get("time"))
        if not isinstance(name, str) or time is None:
            return
        self.last = time if self.last is None else max(time, self.last)
        if self.began is None:
            self.began = time
        match record.get("event"):
            case "run_started":
                self._run_started(record, time)
            case "run_stopped":
                self.stopped = str(record.get("reason") or "")
            case "started":
                self._started(self._stage(name), record, time)
            case "progress":
                self._progress(self._stage(name), record, time)
            case "working":
                self._working(name, record, time)
            case "metrics":
                self._metrics(self._stage(name), record, time)
            case "checkpoint":
                step = _whole(record.get("step"))
                self.checkpoint = self.checkpoint if step is None else (name, step, time)
            case "sample":
                self._stage(name).samples.append(record)
            case "warning":
                warning = (name, str(record.get("message")))
                if warning in self.warnings:  # said again: it is the newest once more
                    self.warnings.remove(warning)
                self.warnings.append(warning)
            case "note":
                self.note = str(record.get("message"))
            case "finished":
                self._finished(self._stage(name), record)
            case _:
                pass

    def _run_started(self, record: Mapping[str, Any], time: float) -> None:
        names = record.get("stages")
        self.name = str(record.get("name") or "")
        self.order = [str(name) for name in names][:_STAGES] if isinstance(names, list | tuple) else []
        self.began, self.stopped, self.current, self.note = time, None, None, ""
        self.checkpoint = None
        self.work.clear()
        for name in self.order:
            stage = self._stage(name)
            stage.state, stage.started, stage.seconds, stage.eta = "next", False, None, None

    def _stage(self, name: str) -> Stage:
        if name not in self.stages:
            if len(self.stages) >= _STAGES:
                return Stage(name)  # heard, not kept
            self.stages[name] = Stage(name)
        return self.stages[name]

    def _at_work(self, stage: Stage, time: float) -> None:
        """It is this one's turn: no other stage is at work."""
        for other in self.stages.values():
            if other.state == "now":
                other.state = "next"
        stage.state, stage.began, self.current = "now", time, stage

    def _started(self, stage: Stage, record: Mapping[str, Any], time: float) -> None:
        began = time if stage.started or stage.state != "now" else stage.began  # since it began to get ready
        self._at_work(stage, time)
        self.work.clear()
        self.checkpoint = None
        resumed = _whole(record.get("resumed_from"))
        if resumed is None:
            stage.series.clear()
            stage.samples.clear()
        else:
            for series in stage.series.values():
                series.cut(resumed)
        stage.began, stage.started, stage.resumed_from = began, True, resumed
        stage.step, stage.total = resumed or 0, _whole(record.get("total_steps"))
        stage.eta = stage.pace = stage.seconds = None
        settings = record.get("settings")
        stage.settings = {key: settings[key] for key in _SETTINGS if key in settings} if _is_map(settings) else {}
        self.note = ""

    def _working(self, name: str, record: Mapping[str, Any], time: float) -> None:
        """Work beside a stage's steps. A stage that gets ready is at work before it says that it started."""
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
        stage.unit = str(record.get("unit") or stage.unit)
        if stage.pace is None:
            stage.pace = (time, stage.step)
        elif stage.eta is None or _real(record.get("eta_s")) is None:
            since, first = stage.pace
            if stage.total is not None and stage.step > first and time > since:  # the stage does not say: its pace does
                stage.eta = ((time - since) / (stage.step - first) * max(0, stage.total - stage.step), time)

    def _moved(self, stage: Stage, record: Mapping[str, Any], time: float) -> None:
        """The step, the total and the time left, as progress and metrics tell them."""
        if stage.state != "now":
            self._at_work(stage, time)
        stage.started = True
        step, total, eta = _whole(record.get("step")), _whole(record.get("total")), _real(record.get("eta_s"))
        stage.step = stage.step if step is None else step
        stage.total = stage.total if total is None else total
        if eta is not None:
            stage.eta = (eta, time)

    def _metrics(self, stage: Stage, record: Mapping[str, Any], time: float) -> None:
        step, values = _whole(record.get("step")), record.get("values")
        if step is None or not _is_map(values):
            return
        if record.get("split") in ("train", "eval"):  # what is measured at the end has no step
            self._moved(stage, record, time)
        for name, value in values.items():
            if name not in stage.series:
                if len(stage.series) >= _METRICS:
                    continue
                stage.series[name] = Series()
            found = _real(value)
            stage.series[name].add(step, math.nan if found is None else found)

    def _finished(self, stage: Stage, record: Mapping[str, Any]) -> None:
        self.work.clear()
        stage.seconds = _real(record.get("seconds"))
        skipped = bool(record.get("skipped"))
        if not skipped and stage.resumed_from is None:
            stage.took = stage.seconds
        stage.state, stage.eta = "skipped" if skipped else "done", None
        if not skipped or self.current is None:
            self.current = stage

    # ------------------------------------------------------------ what it amounts to

    @property
    def over(self) -> bool:
        """Whether all that the command was to do is done, or it has stopped."""
        if self.stopped is not None:
            return True
        return bool(self.order) and all(self.stages[name].state in ("done", "skipped") for name in self.order)

    def no_more_comes(self, why: str) -> None:
        """Its process is gone: stopped, unless all is done. Older versions do not say what was due: what began."""
        if not self.order and all(stage.state in ("done", "skipped") for stage in self.stages.values()):
            self.order = list(self.stages)
        if not self.over and self.last is not None:
            self.stopped = why

    def time_left(self, now: float) -> str:
        """For the whole run. Stages to come count as they took when they last ran; without that they are named."""
        since = 0.0 if self.began is None else (self.last or 0.0) - self.began
        if self.over:
            return f"{'done' if self.stopped is None else 'stopped'} after {duration(since)}"
        running = next((stage for stage in self.stages.values() if stage.state == "now"), None)
        coming = [self.stages[name] for name in self.order if self.stages[name].state == "next"]
        left: float | None = 0.0
        if running is not None:
            left = None if running.eta is None else max(0.0, running.eta[0] - (now - running.eta[1]))
            if left is None and running.took is not None and running.began is not None and not running.resumed_from:
                left = max(0.0, running.took - (now - running.began))
        unknown = [stage.name for stage in coming if stage.took is None]
        known = sum(stage.took for stage in coming if stage.took is not None)
        if running is None and not coming:
            return ""
        if left is None or (running is None and not known):
            text = "?"
        elif known:
            text = f"about {duration(left + known)}"
        else:
            text = duration(left)
        return f"time left {text}" + (f" + {', '.join(unknown)}" if unknown else "")

    def alarms(self) -> list[tuple[str, str]]:
        """(stage, sentence) of what holds now: those of the stage at work first."""
        stages = sorted(self.stages.values(), key=lambda stage: stage is not self.current)
        return [(stage.name, said) for stage in stages for said in alarms(stage.name, stage.series, stage.settings)]

    # ------------------------------------------------------------ how it is drawn

    def lines(self, width: int, height: int, signs: Signs, now: float) -> list[Text]:
        """At most `height` lines of at most `width` cells."""
        head = self.head(width, signs, now)
        room = height - len(head)
        if room < 2:
            return head[: max(0, height)]
        if width >= TWO_COLUMNS and room >= _LEAST_SAMPLE:
            left = (width - len(signs.divider)) * 11 // 20
            right = width - left - len(signs.divider)
            said = self._alarm_lines(right, room // 3, signs)
            sample = self._sample_lines(right, room - len(said), signs)
            body = draw.beside(self._metric_lines(left, room, signs), [*sample, *said], left, signs)
        else:
            said = self._alarm_lines(width, max(2, room // 3), signs)
            room -= len(said)
            least = self._needed(max(room // 2 - 1, room - 2 * _LEAST_SAMPLE))
            kept = max(room - _LEAST_SAMPLE, 1 + least)
            sample = self._sample_lines(width, room - kept, signs, most=1)
            body = [*self._metric_lines(width, room - len(sample), signs), *sample, *said]
        return [*head, *body][:height]

    def summary(self, width: int, signs: Signs, now: float) -> list[Text]:
        """A few lines for when it is over: the stages and the alarms that hold."""
        head = self.head(width, signs, now)[: 3 if self.current is not None and self.current.state == "now" else 2]
        said = self._alarm_lines(width, 24, signs, warnings=False) if self.alarms() or self.stopped else []
        return [*head, *said]

    def head(self, width: int, signs: Signs, now: float) -> list[Text]:
        """The run and its time, the stages, the bar of the one at work; until it is over, what it does just now."""
        title = Text(draw.shown(self.name[: draw.LONGEST], signs) or "run", "bold")
        if self.last is not None and not self.over:
            if now - self.last > STALE_S:
                title.append(f"  no event for {duration(now - self.last)}", "magenta")
            elif self.began is not None:
                title.append(f"  running {duration(now - self.began)}", "dim")
        time = Text(draw.shown(self.time_left(now), signs), "green" if self.over and self.stopped is None else "bold")
        lines = [draw.ends(title, time, width, signs), self._rail(width, signs), self._bar(width, signs, now)]
        return lines if self.over else [*lines, self._work(width, signs, now)]

    def _rail(self, width: int, signs: Signs) -> Text:
        """`✓ sft 1:14 ─ ▸ ppo 12/40 ─ · compare`, the details left out where they do not fit."""
        names = self.order or list(self.stages)
        line = Text()
        for detailed in (True, False):
            line = Text()
            for name in names:
                stage = self.stages[name]
                if line.cell_len:
                    line.append(signs.link, "dim")
                state = "stopped" if self.stopped is not None and stage.state == "now" else stage.state
                mark, style = {
                    "done": (signs.done, "green"),
                    "now": (signs.now, "bold cyan"),
                    "next": (signs.next, "dim"),
                    "skipped": (signs.skipped, "green"),
                    "stopped": (signs.stopped, "bold red"),
                }[state]
                line.append(f"{mark} ", style)
                line.append(draw.shown(name, signs), "bold" if stage.state == "now" else "")
                if detail := _detail(stage) if detailed else "":
                    line.append(f" {detail}", "dim")
            if line.cell_len <= width:
                break
        return draw.fit(line, width, signs)

    def _bar(self, width: int, signs: Signs, now: float) -> Text:
        stage = self.current
        if stage is None or stage.state != "now":
            said = "" if self.over else self.note.replace("\n", " ")
            return draw.fit(Text(draw.shown(said[: draw.LONGEST], signs), "dim"), width, signs)
        if stage.total is None and not stage.step:
            name = Text(draw.shown(stage.name, signs), "bold")
            return draw.fit(name.append("  under way" if stage.started else "  getting ready", "dim"), width, signs)
        unit = _unit(stage, signs)
        count = f"{unit} {stage.step}/{'?' if stage.total is None else stage.total}"
        tail = Text(f"  {count}")
        share = stage.step / stage.total if stage.total else 0.0
        if stage.total:
            tail.append(f"  {min(share, 1.0):.0%}")
        if stage.eta is not None and self.stopped is None:
            tail.append(f"  {duration(stage.eta[0] - (now - stage.eta[1]))} left", "cyan")
        if stage.resumed_from is not None:
            tail.append(f"  resumed from {stage.resumed_from}", "dim")
        head = Text(draw.shown(stage.name, signs), "bold")
        return _barred(head, share, tail, width, signs)

    def _work(self, width: int, signs: Signs, now: float) -> Text:
        """What it does beside its steps; without any such, how far one could go back."""
        for (_, what), record in reversed(self.work.items()):
            seconds, done, total = (_real(record.get(name)) or 0.0 for name in ("seconds", "done", "total"))
            since = max(0.0, now - (_real(record.get("time")) or now))
            if seconds + since < WORK_SHOWN_S:
                continue
            head = Text(draw.shown(what[: draw.LONGEST], signs))
            if not total:
                return _barred(head, None, Text(f"  {duration(seconds + since)}", "dim"), width, signs)
            tail = Text(f"  {draw.shown(str(record.get('unit')), signs)} {int(done)}/{int(total)}  {done / total:.0%}")
            if (left := work_left(int(done), int(total), seconds)) is not None:
                tail.append(f"  {duration(left - since)} left", "cyan")
            return _barred(head, done / total, tail, width, signs)
        if self.checkpoint is None or self.current is None or self.current.name != self.checkpoint[0]:
            return Text()
        step, time = self.checkpoint[1:]
        said = f"last checkpoint: {_unit(self.current, signs)} {step}, {duration(max(0.0, now - time))} ago"
        return draw.fit(Text(said, "dim"), width, signs)

    # metrics

    def _shown_stages(self) -> list[Stage]:
        """The stage at work, then those before it, the newest first: those that have metrics."""
        stages = [stage for stage in reversed(self.stages.values()) if stage is not self.current]
        if self.current is not None:
            stages.insert(0, self.current)
        return [stage for stage in stages if stage.series]

    def _needed(self, most: int) -> int:
        """Lines that the metrics of the first stage take, one line each."""
        stages = self._shown_stages()
        return min(most, len(_rows(stages[0]))) if stages else 0

    def _metric_lines(self, width: int, height: int, signs: Signs) -> list[Text]:
        lines: list[Text] = []
        for index, stage in enumerate(self._shown_stages()):
            rows, room = _rows(stage), height - len(lines) - 1
            if room < 1 or (index and room < min(3, len(rows))):
                break
            title = Text(draw.shown(stage.name, signs), "bold")
            title.append("" if stage.state == "now" else " (done)" if stage.state in ("done", "skipped") else "", "dim")
            lines.append(draw.rule(title, width, signs))
            charted = any(len(series.points) > 1 for _, series in rows)
            each = max(1, min(_TALLEST, room // len(rows))) if charted else 1
            everyone = [series for _, series in rows]
            for metric, series in rows[: room // each]:
                lines += _metric(metric, series, everyone, each, width, signs)
        if not lines and height >= 2:
            lines = [draw.rule(Text("metrics", "bold"), width, signs), draw.fit(Text("none yet", "dim"), width, signs)]
        return lines

    # samples

    def _samples(self) -> list[Mapping[str, Any]]:
        """The newest first, of the stage at work or the last that had any."""
        stages = [stage for stage in reversed(self.stages.values()) if stage.samples]
        if self.current is not None and self.current.samples:
            stages.insert(0, self.current)
        return list(reversed(stages[0].samples)) if stages else []

    def _sample_lines(self, width: int, height: int, signs: Signs, *, most: int = _SAMPLES) -> list[Text]:
        lines: list[Text] = []
        for sample in self._samples()[:most]:
            room = height - len(lines)
            if room < (4 if not lines else _LEAST_SAMPLE):
                break
            lines += _sample(sample, width, room, signs)
        return lines

    # alarms

    def _alarm_lines(self, width: int, height: int, signs: Signs, *, warnings: bool = True) -> list[Text]:
        """What stopped it, the alarms, the warnings (the newest first), in at most `height` lines."""
        found = self.alarms()
        said = [("bold red", "!", *alarm) for alarm in found]
        if self.stopped is not None:
            said.insert(0, ("bold red", signs.stopped, "stopped", self.stopped))
        if warnings:
            said += [("magenta", "-", *warning) for warning in reversed(self.warnings)]
        title = Text(_count(len(found), "alarm"), "bold red" if found else "dim")
        if warnings and self.warnings:
            title.append(f", {_count(len(self.warnings), 'warning')}", "magenta")
        lines = [draw.rule(title, width, signs)]
        for index, (style, mark, stage, sentence) in enumerate(said):
            room = height - len(lines)
            after = len(said) - index - 1
            text = " ".join(f"{stage}: {sentence}".split())
            wrapped = draw.wrap(text, max(1, width - 2), max(1, room), signs)
            if index and len(wrapped) + bool(after) > room:
                if room > 0:
                    lines.append(draw.fit(Text(f"  and {after + 1} more", "dim"), width, signs))
                break
            if after and len(wrapped) >= room > 1:  # the first one may fill all but the line that counts the others
                wrapped = draw.wrap(text, max(1, width - 2), room - 1, signs)
            for number_, line in enumerate(wrapped[: max(0, room)]):
                lines.append(draw.fit(Text(f"{' ' if number_ else mark} ", style).append(line, ""), width, signs))
        return lines[: max(1, height)]


# ---------------------------------------------------------------- parts


def _unit(stage: Stage, signs: Signs) -> str:
    return "update" if stage.name == "ppo" else draw.shown(stage.unit, signs)


def _barred(head: Text, share: float | None, tail: Text, width: int, signs: Signs) -> Text:
    """A bar (None: none) in what room `head` and `tail` leave; a long name is cut before the numbers are."""
    room = width - tail.cell_len
    if head.cell_len > room:
        draw.fit(head, max(0, room), signs)
    room = min(room - head.cell_len - 2, _BAR)
    if share is not None and room >= _LEAST_BAR:
        head.append("  ").append_text(draw.bar(share, room, signs, "cyan"))
    return draw.fit(head.append_text(tail), width, signs)


def _rows(stage: Stage) -> list[tuple[Metric, Series]]:
    """The stage's key metrics that were reported; where none is known, what there is."""
    known = [
        (metric, stage.series[metric.name]) for metric in METRICS.get(stage.name, ()) if metric.name in stage.series
    ]
    return known or [(Metric(name, name, 0, ""), series) for name, series in list(stage.series.items())[:8]]


def _metric(
    metric: Metric, series: Series, beside: Sequence[Series], height: int, width: int, signs: Signs
) -> list[Text]:
    """One metric in `height` lines: name, number, trend, chart and its range; below the name what it means.

    Its chart shows the same steps as those `beside` it.
    """
    value = Text(f"{_three(series.last):>{_VALUE}}", "bold" if math.isfinite(series.last) else "bold red")
    first = draw.fit(Text(draw.shown(metric.label, signs)), _LABEL, signs, pad=True).append_text(value)
    trended = width >= _LABEL + _VALUE + _TREND + 6
    if trended:
        first.append("  ").append_text(draw.fit(_trend(metric, series, signs), _TREND, signs, pad=True))
    second = Text(f"  {metric.meaning}", "dim")
    extent, taken = series.extent(), first.cell_len + 2
    ranged = width >= taken + _RANGE + 12
    room = width - taken - (_RANGE + 2 if ranged else 0)
    lines = [first, *([second] if height > 1 else []), *(Text() for _ in range(height - 2))]
    if extent is None or len(series.points) < 2 or room < 4:
        return [draw.fit(line, width, signs) for line in lines]
    tall = max(1, height - 1)
    drawn = draw.chart(series.columns(Axis.of(beside, room)), extent, tall, signs)
    low, high = (_three(_rounded(value, extent[1] - extent[0])) for value in extent)
    notes = [f"{low} to {high}"] if tall == 1 else [high, *[""] * (tall - 2), low]
    for line, columns, note in zip(lines, drawn, notes, strict=False):
        draw.fit(line, taken - 2, signs, pad=True).append("  ").append(columns, "cyan")
        if ranged:
            line.append(f"  {note}", "dim")
    return [draw.fit(line, width, signs) for line in lines]


def _trend(metric: Metric, series: Series, signs: Signs) -> Text:
    found = series.trend()
    if found is None:
        return Text()
    change, clear = found
    if not clear:
        return Text(signs.level, "dim")
    style = {0: "cyan", 1: "green", -1: "red"}[metric.better * (1 if change > 0 else -1)]
    return Text(f"{signs.up if change > 0 else signs.down} {number(abs(change), 2)}", style)


def _sample(sample: Mapping[str, Any], width: int, height: int, signs: Signs) -> list[Text]:
    """The prompt, and under it the policy's response beside the reference's, each with its scores."""
    step = _whole(sample.get("step"))
    title = Text("sample", "bold")
    if sample.get("stage") == "ppo" and step is not None:
        title.append(f" at update {step}" if step else " before the first update", "dim")
    lines = [draw.rule(title, width, signs)]
    ours, theirs = sample.get("response"), sample.get("reference")
    most = max(1, (height - 2) // 3)
    for index, line in enumerate(draw.wrap(transcript(sample.get("prompt")), max(1, width - 8), most, signs)):
        lines.append(Text("" if index else "prompt", "dim").append(" " * (8 if index else 2)).append(line))
    room = height - len(lines)
    sides = [("policy", "bold cyan", ours, sample.get("scores"))]
    if theirs is not None:
        sides.append(("reference", "bold", theirs, sample.get("reference_scores")))
    gap = len(signs.divider)
    if len(sides) == 2 and width >= 50:
        half = (width - gap) // 2
        left, right = (_side(*side, half, room, signs) for side in sides)
        lines += draw.beside(left, right, half, signs)
    else:
        for index, side in enumerate(sides):
            lines += _side(*side, width, max(2, (height - len(lines)) // (len(sides) - index)), signs)
    return [draw.fit(line, width, signs) for line in lines[:height]]


def _side(name: str, style: str, text: Any, scores: Any, width: int, height: int, signs: Signs) -> list[Text]:
    head = Text(name, style)
    for key, value in scores.items() if _is_map(scores) else ():
        found = _real(value)
        head.append(f"  {draw.shown(str(key)[: draw.LONGEST], signs)} ", "dim")
        head.append("nan" if found is None else number(found, 3), "bold")
    body = transcript(text).strip()
    lines = draw.wrap(body, width, height - 1, signs) if body else ["(empty)"]
    return [draw.fit(line, width, signs) for line in (head, *map(Text, lines))][: max(0, height)]


def _detail(stage: Stage) -> str:
    if stage.state == "now":
        return f"{stage.step}/{stage.total}" if stage.total else ""
    if stage.state == "skipped":
        return "unchanged"
    return duration(stage.seconds) if stage.state == "done" and stage.seconds is not None else ""


def _count(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _three(value: float) -> str:
    return number(value, 3 if abs(value) < 1e4 else 4)


def _rounded(value: float, span: float) -> float:
    """`value` to a hundredth of its span's first digit: an end of a range needs no more."""
    if not (span > 0 and math.isfinite(span)):
        return value
    return round(value, 2 - math.floor(math.log10(span))) + 0.0  # no -0


def _real(value: Any) -> float | None:
    """A finite number, or None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond floats
        return None


def _whole(value: Any) -> int | None:
    found = _real(value)
    return None if found is None else int(found)


def _is_map(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
