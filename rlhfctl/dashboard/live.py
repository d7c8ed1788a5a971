"""Events on a terminal: one progress bar for the stage at work; what is over and what was said scrolls up above it.

Writes to the console it is given; reads nothing. Left out: samples and checkpoints (they are in `events.jsonl` and in
the plain log), and a full-screen view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from rlhfctl.dashboard.plain import chosen_metrics, duration, number, one_line, visible
from rlhfctl.events import Event, Metrics, Note, StageFinished, StageStarted, Warned
from rlhfctl.events import Progress as ProgressEvent

KEY_METRICS: dict[str, tuple[str, ...]] = {
    "sft": ("loss", "mean_token_accuracy", "learning_rate", "eval_loss"),
    "reward": ("loss", "accuracy", "margin", "eval_accuracy"),
    "ppo": ("score", "kl", "length", "entropy"),
}
"""The few to show beside the bar, in order of worth: as many as fit are shown."""

_LABELS = {"learning_rate": "lr", "mean_token_accuracy": "acc", "accuracy": "acc", "eval_accuracy": "eval acc"}
_NAME_WIDTH = 8  # "compare" and a space
_GAP = "  "


class LivePrinter:
    """A listener for terminals, and a context manager: inside it the bar is alive, outside the terminal is as it was.

    An exception leaves the bar where it stood, then shows the cursor again.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        wide = console.width >= 100
        bar_width = 28 if wide else 14 if console.width >= 60 else 6
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(width=_NAME_WIDTH - 1, no_wrap=True)),
            BarColumn(bar_width=bar_width),
            _TailColumn(console, taken=_NAME_WIDTH + bar_width + 2),
            console=console,
        )
        self._task: TaskID | None = None
        self._stage: str | None = None
        self._values: dict[str, float] = {}

    def start(self) -> None:
        """Show the bar."""
        self._progress.start()

    def stop(self) -> None:
        """Take the terminal back: the bar of an unfinished stage stays as a line, the cursor is shown below it."""
        self._progress.stop()

    def __enter__(self) -> LivePrinter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __call__(self, event: Event, /) -> None:
        match event:
            case StageStarted():
                self._begin(event.stage, event.total_steps, event.resumed_from or 0)
                if event.resumed_from is not None:
                    self._say(" ", event.stage, f"resumes from step {event.resumed_from}", "dim")
            case ProgressEvent():
                self._update(event.stage, event.step, event.total, event.eta_s)
            case Metrics():
                if event.stage != self._stage:
                    self._begin(event.stage, event.total, event.step)
                self._values |= event.values
                self._update(event.stage, event.step, event.total, event.eta_s)
            case Warned():
                self._say("!", event.stage, one_line(event.message), "yellow")
            case Note():
                self._say(" ", event.stage, one_line(event.message), "dim")
            case StageFinished():
                self._finish(event)
            case _:
                pass

    def _begin(self, stage: str, total: int | None, step: int) -> None:
        self._end()
        self._stage, self._values = stage, {}
        self._task = self._progress.add_task(visible(stage), total=total, completed=step, eta_s=None, metrics=[])

    def _update(self, stage: str, step: int, total: int | None, eta_s: float | None) -> None:
        if stage != self._stage or self._task is None:
            self._begin(stage, total, step)
        assert self._task is not None
        if total is not None:
            self._progress.update(self._task, total=total)
        if eta_s is not None:
            self._progress.update(self._task, eta_s=eta_s)
        self._progress.update(self._task, completed=step, metrics=_labelled(stage, self._values))

    def _end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._stage = None

    def _finish(self, event: StageFinished) -> None:
        if event.stage == self._stage:
            self._end()
        path = visible(event.path)
        if event.skipped:
            self._say("-", event.stage, f"skipped: already complete in {path}", "dim")
            return
        pairs = _labelled(event.stage, event.metrics)[:4]
        parts = [f"finished in {duration(event.seconds)}", *(f"{name} {value}" for name, value in pairs), path]
        self._say("*" if self.console.options.ascii_only else "✓", event.stage, _GAP.join(parts), "green")

    def _say(self, mark: str, stage: str, message: str, style: str) -> None:
        """One message above the bar; a long one wraps under itself, not under the stage's name."""
        line = Table.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(width=_NAME_WIDTH - 1, no_wrap=True)
        line.add_column(overflow="fold")
        body = "" if style == "green" else style  # colour marks that a stage is over; its numbers stay readable
        line.add_row(Text(mark, style), Text(visible(stage), style), Text(message, body))
        self.console.print(line)


class _TailColumn(ProgressColumn):
    """`120/375  0:42 left  loss 2.31`: the count, the time left, and as many metrics as fit.

    `taken` is how many cells of a line the columns to the left and the spaces between them need.
    """

    def __init__(self, console: Console, taken: int) -> None:
        super().__init__(Column(no_wrap=True))
        self.console, self.taken = console, taken

    def render(self, task: Task) -> Text:
        width = self.console.width - self.taken  # asked each time: terminals are resized
        total = "?" if task.total is None else str(int(task.total))
        text = Text(f"{int(task.completed):>{len(total)}}/{total}")
        eta_s = task.fields["eta_s"]
        if eta_s is not None and math.isfinite(eta_s):
            text.append(f"{_GAP}{duration(eta_s):>5} left", "cyan")
        for name, value in task.fields["metrics"]:
            # values are padded, so that what stands to the right of them does not dance
            if text.cell_len + cell_len(f"{_GAP}{name} {value}") > width:
                break
            text.append(f"{_GAP}{name} ", "dim")
            text.append(f"{value:<6}")
        text.rstrip()
        return text


def _labelled(stage: str, values: Mapping[str, float]) -> list[tuple[str, str]]:
    """The stage's key metrics that are there, then others, as (short name, text)."""
    key = [name for name in KEY_METRICS.get(stage, ()) if name in values]
    names = key or list(chosen_metrics(stage, values))
    return [
        (visible(_LABELS.get(name, name)), number(values[name], 3 if abs(values[name]) < 1e4 else 4)) for name in names
    ]
