"""Draw the parts of the screen: the row of stages, a progress bar, one metric with its chart, one sample.

Pure functions: parts of a run's state in, lines out, none wider than the given width. Leaves out where the parts stand
(screen.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from rlhfctl.dashboard.series import Axis, Series
from rlhfctl.dashboard.state import RunState, Stage, is_map, real, whole
from rlhfctl.dashboard.terminal import draw
from rlhfctl.dashboard.terminal.draw import Signs
from rlhfctl.dashboard.text import duration, number, rounded_to, short
from rlhfctl.events import transcript
from rlhfctl.metrics import Metric, ranked, step_name

LABEL_WIDTH, VALUE_WIDTH, TREND_WIDTH, _RANGE = 18, 8, 9, 18  # cells of a metric's columns
_BAR, _LEAST_BAR = 60, 4  # cells
_UNKNOWN = 8  # metrics shown of a stage without key metrics
_NAMED = 12  # most stages named in the row of stages


def rail(state: RunState, width: int, signs: Signs) -> Text:
    """Draw the row of stages, `✓ sft 1:14 ─ ▸ ppo 12/40 ─ · compare`. Details that do not fit are left out.

    A run of several rounds shows the round at work and counts the stages before and after it:
    `✓ 4 done ─ round-2: ✓ reward 0:14 ─ ▸ ppo 12/40 ─ · 4 to come`.
    """
    names = state.order or list(state.stages)
    stages = [state.stages[name] for name in names]
    low, high = _named(stages)
    line = Text()
    for detailed in (True, False):
        line = _counted(stages[:low], signs)
        for index, stage in enumerate(stages[low:high]):
            if line.cell_len:
                line.append(signs.link, "dim")
            before, _, own = stage.name.rpartition("/")
            if before and index == 0:
                line.append(f"{draw.shown(before, signs)}: ", "bold")
            stopped = state.stopped is not None and stage.state == "now"
            sign, style = mark("stopped" if stopped else stage.state, signs)
            line.append(f"{sign} ", style)
            line.append(draw.shown(own, signs), "bold" if stage.state == "now" else "")
            if more := detail(stage) if detailed else "":
                line.append(f" {more}", "dim")
        if high < len(stages):
            line.append(signs.link, "dim").append_text(_counted(stages[high:], signs))
        if line.cell_len <= width:
            break
    return draw.fit(line, width, signs)


def _named(stages: Sequence[Stage]) -> tuple[int, int]:
    """Return (begin, end) of the stages to name: the round of the stage at work, else of the next or last one."""
    if not stages:
        return 0, 0
    indices = {stage.state: index for index, stage in reversed([*enumerate(stages)])}  # the first one in each state
    focus = indices.get("now", indices.get("next", len(stages) - 1))
    rounds = [stage.name.rpartition("/")[0] for stage in stages]
    low = high = focus
    while low > 0 and rounds[low - 1] == rounds[focus]:
        low -= 1
    while high < len(stages) and rounds[high] == rounds[focus]:
        high += 1
    if high - low > _NAMED:
        low = max(low, min(focus - _NAMED // 2, high - _NAMED))
    return low, min(high, low + _NAMED)


def _counted(stages: Sequence[Stage], signs: Signs) -> Text:
    """Count the stages that are not named, with the sign of their state."""
    if not stages:
        return Text()
    states = {stage.state for stage in stages}
    if states <= {"done", "skipped"}:
        return Text().append(f"{signs.done} ", "green").append(f"{len(stages)} done", "dim")
    word = "to come" if states == {"next"} else "others"
    return Text().append(f"{signs.next} {len(stages)} {word}", "dim")


def mark(state: str, signs: Signs) -> tuple[str, str]:
    """Return the sign of a stage's state, and its style."""
    return {
        "done": (signs.done, "green"),
        "now": (signs.now, "bold cyan"),
        "next": (signs.next, "dim"),
        "skipped": (signs.skipped, "green"),
        "stopped": (signs.stopped, "bold red"),
        "waiting": (signs.stopped, "bold yellow"),
    }[state]


def detail(stage: Stage) -> str:
    """Return the steps of the stage at work, or the time that a finished one took."""
    if stage.state == "now":
        return f"{stage.step}/{stage.total}" if stage.total else ""
    if stage.state == "skipped":
        return "unchanged"
    return duration(stage.seconds) if stage.state == "done" and stage.seconds is not None else ""


def unit(stage: Stage, signs: Signs) -> str:
    """Return the name of one step of the stage: step, update, ..."""
    return draw.shown(step_name(stage.name, stage.unit), signs)


def barred(head: Text, share: float | None, tail: Text, width: int, signs: Signs) -> Text:
    """Draw a bar (None: no bar) between `head` and `tail`. A long name is cut before the numbers."""
    room = width - tail.cell_len
    if head.cell_len > room:
        draw.fit(head, max(0, room), signs)
    room = min(room - head.cell_len - 2, _BAR)
    if share is not None and room >= _LEAST_BAR:
        head.append("  ").append_text(draw.bar(share, room, signs, "cyan"))
    return draw.fit(head.append_text(tail), width, signs)


def metric_rows(stage: Stage) -> list[tuple[Metric, Series]]:
    """Choose the stage's key metrics that were reported; for an unknown stage, the first metrics reported."""
    known = [
        (metric, stage.series[metric.name]) for metric in ranked(stage.name, "screen") if metric.name in stage.series
    ]
    return known or [(Metric(name, "", ""), series) for name, series in list(stage.series.items())[:_UNKNOWN]]


def metric_lines(
    metric: Metric, series: Series, beside: Sequence[Series], height: int, width: int, signs: Signs
) -> list[Text]:
    """Draw one metric in `height` lines: name, number, trend, chart and its range; its meaning below the name.

    Its chart has the same step axis as the charts of the series in `beside`.
    """
    value = Text(f"{short(series.last):>{VALUE_WIDTH}}", "bold" if math.isfinite(series.last) else "bold red")
    label = Text(draw.shown(metric.label or metric.name, signs))
    first = draw.fit(label, LABEL_WIDTH, signs, pad=True).append_text(value)
    if width >= LABEL_WIDTH + VALUE_WIDTH + TREND_WIDTH + 6:
        first.append("  ").append_text(draw.fit(_trend(metric, series, signs), TREND_WIDTH, signs, pad=True))
    second = Text(f"  {metric.hint}", "dim")
    lines = [first, *([second] if height > 1 else []), *(Text() for _ in range(height - 2))]
    extent, taken = series.extent(), first.cell_len + 2
    ranged = width >= taken + _RANGE + 12
    room = width - taken - (_RANGE + 2 if ranged else 0)
    if extent is None or len(series.points) < 2 or room < 4:
        return [draw.fit(line, width, signs) for line in lines]
    tall = max(1, height - 1)
    drawn = draw.chart(series.columns(Axis.of(beside, room)), extent, tall, signs)
    low, high = (short(rounded_to(value, extent[1] - extent[0])) for value in extent)
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


def sample_lines(sample: Mapping[str, Any], width: int, height: int, signs: Signs) -> list[Text]:
    """Draw a sample: the prompt, and under it the policy's response beside the reference's, each with its scores."""
    step = whole(sample.get("step"))
    title = Text("sample", "bold")
    name = step_name(str(sample.get("stage")), "")
    if name and step is not None:
        title.append(f" at {name} {step}" if step else f" before the first {name}", "dim")
    lines = [draw.rule(title, width, signs)]
    response, reference = sample.get("response"), sample.get("reference")
    most = max(1, (height - 2) // 3)
    for index, line in enumerate(draw.wrap(transcript(sample.get("prompt")), max(1, width - 8), most, signs)):
        lines.append(Text("" if index else "prompt", "dim").append(" " * (8 if index else 2)).append(line))
    room = height - len(lines)
    sides = [("policy", "bold cyan", response, sample.get("scores"))]
    if reference is not None:
        sides.append(("reference", "bold", reference, sample.get("reference_scores")))
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
    heads = [Text().append(name, style)]  # no style for the whole line: other parts keep their own
    for key, value in scores.items() if is_map(scores) else ():
        found = real(value)
        score = Text(f"{draw.shown(str(key)[: draw.LONGEST], signs)} ", "dim")
        score.append("nan" if found is None else number(found, 3), "bold")
        if heads[-1].cell_len + 2 + score.cell_len > width and len(heads) < height - 1:  # keep one line for text
            heads.append(Text())
        heads[-1].append("  ").append_text(score)
    body = transcript(text).strip()
    lines = draw.wrap(body, width, height - len(heads), signs) if body else ["(empty)"]
    return [draw.fit(line, width, signs) for line in (*heads, *map(Text, lines))][: max(0, height)]
