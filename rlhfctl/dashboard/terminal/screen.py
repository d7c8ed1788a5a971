"""The screen of a run: fed event records one by one, it draws what they amount to in any width and height.

Above: the run, its stages (done, now, next) and the time left. Below: the stage's key metrics as number, trend and
chart, the last sample beside the reference's, and alarms. Reads nothing and prints nothing. What it knows of the run is
state.py's; who shows it: live.py during `run`, watch.py from `events.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from rlhfctl.dashboard.series import Axis, Series
from rlhfctl.dashboard.state import KEPT_SAMPLES, RunState, Stage, is_map, real, whole
from rlhfctl.dashboard.terminal import draw
from rlhfctl.dashboard.terminal.draw import Signs
from rlhfctl.dashboard.text import duration, number, work_left
from rlhfctl.events import transcript

TWO_COLUMNS = 120  # from this width on metrics stand to the left of samples and alarms
STALE_S = 30.0  # without an event for longer, the screen says so
WORK_SHOWN_S = 0.5  # work that is over sooner would only flicker
_LABEL, _VALUE, _TREND, _RANGE = 18, 8, 9, 18  # widths of a metric's columns
_BAR, _LEAST_BAR = 60, 4  # cells
_TALLEST = 4  # lines that one metric takes where there is room
_AGES = {"done": " (done)", "skipped": " (done)", "next": " (of an earlier run; to come)"}  # of what is shown
_VERDICT_LINES = 5
_LEAST_SAMPLE = 8  # lines: rule, two of a prompt, heads, four of responses


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
        Metric("control_win_rate", "least fair control", 1, "against the strongest fair control"),
        Metric("delta", "score gained", 1, "policy less reference"),
        Metric("kl", "KL", 0, "nats from the reference, a response"),
        Metric("length", "length", 0, "tokens a response"),
    ),
}
"""Each stage's key metrics, in order of worth: as many as fit are shown."""


class Screen(RunState):
    """A run's state, and how it looks in any width and height."""

    def lines(self, width: int, height: int, signs: Signs, now: float) -> list[Text]:
        """At most `height` lines of at most `width` cells."""
        head = self.head(width, signs, now)
        room = height - len(head)
        if room < 2:
            return head[: max(0, height)]
        if width >= TWO_COLUMNS and room >= _LEAST_SAMPLE:
            left = (width - len(signs.divider)) * 3 // 5  # at 120 cells a chart's range still fits beside it
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
        head = self.head(width, signs, now)
        under_way = self.current is not None and self.current.state == "now"
        head = [*head[: 3 if under_way else 2], *(head[3:] if self.over else [])]
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
        return [*lines, *self._verdict_lines(width, signs)] if self.over else [*lines, self._work(width, signs, now)]

    def _verdict_lines(self, width: int, signs: Signs) -> list[Text]:
        """What the comparison found, once the run is over."""
        if self.verdict is None:
            return []
        word, sentence = self.verdict
        lines = [Text(line) for line in draw.wrap(sentence, width, _VERDICT_LINES, signs)]
        if lines and sentence.startswith(word):
            lines[0].stylize(draw.VERDICT_STYLES.get(word, "bold"), 0, min(len(word), len(lines[0])))
        return lines

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
                    "waiting": (signs.stopped, "bold yellow"),
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
        if (left := stage.left(now)) is not None and self.stopped is None:
            tail.append(f"  {duration(left)} left", "cyan")
        if stage.resumed_from is not None:
            tail.append(f"  resumed from {stage.resumed_from}", "dim")
        head = Text(draw.shown(stage.name, signs), "bold")
        return _barred(head, share, tail, width, signs)

    def _work(self, width: int, signs: Signs, now: float) -> Text:
        """What it does beside its steps; without any such, how far one could go back."""
        for (_, what), record in reversed(self.work.items()):
            seconds, done, total = (real(record.get(name)) or 0.0 for name in ("seconds", "done", "total"))
            since = max(0.0, now - (real(record.get("time")) or now))
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
            title.append(_AGES.get(stage.state, ""), "dim")
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
        stages = [stage for stage in reversed(self.stages.values()) if stage.samples and stage.state != "next"]
        if self.current is not None and self.current.samples:
            stages.insert(0, self.current)
        return list(reversed(stages[0].samples)) if stages else []

    def _sample_lines(self, width: int, height: int, signs: Signs, *, most: int = KEPT_SAMPLES) -> list[Text]:
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
    step = whole(sample.get("step"))
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
    heads = [Text(name, style)]
    for key, value in scores.items() if is_map(scores) else ():
        found = real(value)
        score = Text(f"{draw.shown(str(key)[: draw.LONGEST], signs)} ", "dim")
        score.append("nan" if found is None else number(found, 3), "bold")
        if heads[-1].cell_len + 2 + score.cell_len > width and len(heads) < height - 1:  # one line of text must stay
            heads.append(Text())
        heads[-1].append("  ").append_text(score)
    body = transcript(text).strip()
    lines = draw.wrap(body, width, height - len(heads), signs) if body else ["(empty)"]
    return [draw.fit(line, width, signs) for line in (*heads, *map(Text, lines))][: max(0, height)]


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
