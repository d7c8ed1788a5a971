"""Draw the screen of a run, at any width and height.

At the top: the run, its stages (done, now, next) and the time left. Below: the stage's key metrics as number, trend and
chart, the last sample beside the reference's, and alarms. Reads the run's state (state.py) and lays out parts that
parts.py draws. Prints nothing: live.py shows the screen during `run`, watch.py from `events.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from rlhfctl.dashboard.state import KEPT_SAMPLES, RunState, Stage, real
from rlhfctl.dashboard.terminal import draw, parts
from rlhfctl.dashboard.terminal.draw import Signs
from rlhfctl.dashboard.terminal.seed_rows import seed_rows
from rlhfctl.dashboard.text import counted, duration, work_left

TWO_COLUMNS = 120  # from this width, metrics stand to the left of samples and alarms
STALE_S = 30.0  # after this time without an event the screen says so
WORK_SHOWN_S = 0.5  # shorter work would only flicker
_TALLEST = 4  # most lines per metric
# State of a stage -> suffix of the title above its metrics.
_AGES = {"done": " (done)", "skipped": " (done)", "next": " (of an earlier run; to come)"}
_VERDICT_LINES = 5
_STAGES_SHARE = 4  # of a screen's lines, one in so many is for the stages of several seeds
_STAGE_LINES = 12  # that stay after the screen is erased
_LEAST_SAMPLE = 8  # lines: rule, two for a prompt, names and scores, four for responses


class Screen:
    """Draw a run's state in any width and height."""

    def __init__(self, state: RunState | None = None) -> None:
        self.state = RunState() if state is None else state

    def lines(self, width: int, height: int, signs: Signs, now: float) -> list[Text]:
        """Draw the screen in at most `height` lines of at most `width` cells."""
        head = self.head(width, signs, now, height // _STAGES_SHARE)
        room = height - len(head)
        if room < 2:
            return head[: max(0, height)]
        if width >= TWO_COLUMNS and room >= _LEAST_SAMPLE:
            left = (width - len(signs.divider)) * 3 // 5  # leaves room for a chart and its range at 120 cells
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
        """Draw the lines that stay after the screen is erased: the stages and the alarms that hold."""
        head = self.head(width, signs, now)
        bar = 1 + len(self._stage_lines(width, signs))
        under_way = self.state.current is not None and self.state.current.state == "now"
        head = [*head[: bar + 1 if under_way else bar], *(head[bar + 1 :] if self.state.over else [])]
        said = self._alarm_lines(width, 24, signs, warnings=False) if self.state.alarms() or self.state.stopped else []
        return [*head, *said]

    def head(self, width: int, signs: Signs, now: float, most: int = _STAGE_LINES) -> list[Text]:
        """Draw the run and its time, the stages, a progress bar, and the current work or, at the end, the verdict.

        `most`: lines for the stages of a run over several seeds.
        """
        state = self.state
        title = Text(draw.shown(state.name[: draw.LONGEST], signs) or "run", "bold")
        if state.last is not None and not state.over:
            if now - state.last > STALE_S:
                title.append(f"  no event for {duration(now - state.last)}", "magenta")
            elif state.began is not None:
                title.append(f"  running {duration(now - state.began)}", "dim")
        style = "green" if state.over and state.stopped is None else "bold"
        first = draw.ends(title, Text(draw.shown(state.time_left(now), signs), style), width, signs)
        lines = [first, *self._stage_lines(width, signs, most), self._bar(width, signs, now)]
        return [*lines, *(self._verdict_lines(width, signs) if state.over else [self._work(width, signs, now)])]

    def _stage_lines(self, width: int, signs: Signs, most: int = _STAGE_LINES) -> list[Text]:
        """Draw the stages in one line or, in a run over several seeds, in a line per seed."""
        return seed_rows(self.state, width, max(2, most), signs) or [parts.rail(self.state, width, signs)]

    def _verdict_lines(self, width: int, signs: Signs) -> list[Text]:
        """Draw the verdict of the comparison, once the run is over."""
        if self.state.verdict is None:
            return []
        word, sentence = self.state.verdict
        lines = [Text(line) for line in draw.wrap(sentence, width, _VERDICT_LINES, signs)]
        if lines and sentence.startswith(word):
            lines[0].stylize(draw.VERDICT_STYLES.get(word, "bold"), 0, min(len(word), len(lines[0])))
        return lines

    def _bar(self, width: int, signs: Signs, now: float) -> Text:
        """Draw the progress of the stage at work or, without one, the newest note."""
        stage = self.state.current
        if stage is None or stage.state != "now":
            said = "" if self.state.over else self.state.note.replace("\n", " ")
            return draw.fit(Text(draw.shown(said[: draw.LONGEST], signs), "dim"), width, signs)
        if stage.total is None and not stage.step:
            name = Text(draw.shown(stage.name, signs), "bold")
            return draw.fit(name.append("  under way" if stage.started else "  getting ready", "dim"), width, signs)
        total = "?" if stage.total is None else stage.total
        tail = Text(f"  {parts.unit(stage, signs)} {stage.step}/{total}")
        share = stage.step / stage.total if stage.total else 0.0
        if stage.total:
            tail.append(f"  {min(share, 1.0):.0%}")
        if (left := stage.left(now)) is not None and self.state.stopped is None:
            tail.append(f"  {duration(left)} left", "cyan")
        if stage.resumed_from is not None:
            tail.append(f"  resumed from {stage.resumed_from}", "dim")
        head = Text(draw.shown(stage.name, signs), "bold")
        return parts.barred(head, share, tail, width, signs)

    def _work(self, width: int, signs: Signs, now: float) -> Text:
        """Draw the work beside the stage's steps or, without any, the last checkpoint."""
        for (_, what), record in reversed(self.state.work.items()):
            seconds, done, total = (real(record.get(name)) or 0.0 for name in ("seconds", "done", "total"))
            since = max(0.0, now - (real(record.get("time")) or now))
            if seconds + since < WORK_SHOWN_S:
                continue
            head = Text(draw.shown(what[: draw.LONGEST], signs))
            if not total:
                return parts.barred(head, None, Text(f"  {duration(seconds + since)}", "dim"), width, signs)
            tail = Text(f"  {draw.shown(str(record.get('unit')), signs)} {int(done)}/{int(total)}  {done / total:.0%}")
            if (left := work_left(int(done), int(total), seconds)) is not None:
                tail.append(f"  {duration(left - since)} left", "cyan")
            return parts.barred(head, done / total, tail, width, signs)
        stage, checkpoint = self.state.current, self.state.checkpoint
        if stage is None or checkpoint is None or stage.name != checkpoint[0]:
            return Text()
        _, step, time = checkpoint
        said = f"last checkpoint: {parts.unit(stage, signs)} {step}, {duration(max(0.0, now - time))} ago"
        return draw.fit(Text(said, "dim"), width, signs)

    # metrics

    def _shown_stages(self) -> list[Stage]:
        """Return the stages that have metrics: the stage at work, then the others, the newest first."""
        stages = [stage for stage in reversed(self.state.stages.values()) if stage is not self.state.current]
        if self.state.current is not None:
            stages.insert(0, self.state.current)
        return [stage for stage in stages if stage.series]

    def _needed(self, most: int) -> int:
        """Count the lines that the metrics of the first stage take, one line per metric."""
        stages = self._shown_stages()
        return min(most, len(parts.metric_rows(stages[0]))) if stages else 0

    def _metric_lines(self, width: int, height: int, signs: Signs) -> list[Text]:
        lines: list[Text] = []
        for index, stage in enumerate(self._shown_stages()):
            rows, room = parts.metric_rows(stage), height - len(lines) - 1
            if room < 1 or (index and room < min(3, len(rows))):
                break
            title = Text(draw.shown(stage.name, signs), "bold")
            title.append(_AGES.get(stage.state, ""), "dim")
            lines.append(draw.rule(title, width, signs))
            charted = any(len(series.points) > 1 for _, series in rows)
            each = max(1, min(_TALLEST, room // len(rows))) if charted else 1
            everyone = [series for _, series in rows]
            for metric, series in rows[: room // each]:
                lines += parts.metric_lines(metric, series, everyone, each, width, signs)
        if not lines and height >= 2:
            lines = [draw.rule(Text("metrics", "bold"), width, signs), draw.fit(Text("none yet", "dim"), width, signs)]
        return lines

    # samples

    def _samples(self) -> list[Mapping[str, Any]]:
        """Return the samples of the stage at work, or of the last stage that had any, the newest first."""
        stages = [stage for stage in reversed(self.state.stages.values()) if stage.samples and stage.state != "next"]
        if self.state.current is not None and self.state.current.samples:
            stages.insert(0, self.state.current)
        return list(reversed(stages[0].samples)) if stages else []

    def _sample_lines(self, width: int, height: int, signs: Signs, *, most: int = KEPT_SAMPLES) -> list[Text]:
        lines: list[Text] = []
        for sample in self._samples()[:most]:
            room = height - len(lines)
            if room < (4 if not lines else _LEAST_SAMPLE):
                break
            lines += parts.sample_lines(sample, width, room, signs)
        return lines

    # alarms

    def _alarm_lines(self, width: int, height: int, signs: Signs, *, warnings: bool = True) -> list[Text]:
        """Draw why the run stopped, the alarms and the warnings (the newest first) in at most `height` lines."""
        found = self.state.alarms()
        said = [("bold red", "!", *alarm) for alarm in found]
        if self.state.stopped is not None:
            said.insert(0, ("bold red", signs.stopped, "stopped", self.state.stopped))
        if warnings:
            said += [("magenta", "-", *warning) for warning in reversed(self.state.warnings)]
        title = Text(counted(len(found), "alarm"), "bold red" if found else "dim")
        if warnings and self.state.warnings:
            title.append(f", {counted(len(self.state.warnings), 'warning')}", "magenta")
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
            if after and len(wrapped) >= room > 1:  # keep one line that counts the others
                wrapped = draw.wrap(text, max(1, width - 2), room - 1, signs)
            for number_, line in enumerate(wrapped[: max(0, room)]):
                lines.append(draw.fit(Text(f"{' ' if number_ else mark} ", style).append(line, ""), width, signs))
        return lines[: max(1, height)]
