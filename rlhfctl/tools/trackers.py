"""Send the metrics of every stage to the experiment trackers that the recipe names in `report_to`.

Reads the run's events as a listener, so that every stage reports in the same way: sft, reward, ppo with its
evaluations, and the verdict. Each stage is a separate run in the tracker, in one project, and is closed when the stage
ends. A stage that resumes repeats no step. TensorBoard's files are written into the run folder, under
`tensorboard/STAGE`. A tracker's library is imported only if `report_to` names it. Its output is hidden, because the
dashboard draws on the terminal; one note per stage says where to look.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Event, Metrics, Note, Progress, RunStopped, StageFinished, StageStarted, VerdictReached

PROJECT = "rlhfctl"


class Tracker(Protocol):
    """One stage in a tracker. `location` tells people where to look at it: a URL or a command."""

    location: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics at a step. All values are finite."""

    def text(self, name: str, words: str) -> None:
        """Log a sentence under a name."""

    def close(self) -> None:
        """Close the stage's run in the tracker."""


OpenTracker = Callable[[Path, str, str, Mapping[str, Any], int], Tracker]
"""(run folder, run's name, stage, settings, first step that will be logged) -> the stage in the tracker."""


class TensorBoard:
    """Write event files for TensorBoard into the run folder."""

    def __init__(self, run: Path, name: str, stage: str, settings: Mapping[str, Any], first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard" / stage), purge_step=first or None)
        self.location = f"tensorboard --logdir {run / 'tensorboard'}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def text(self, name: str, words: str) -> None:
        self.writer.add_text(name, words)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Log one stage to Weights & Biases as a run named RUN-STAGE, grouped by run. A resumed stage continues its run."""

    def __init__(self, run: Path, name: str, stage: str, settings: Mapping[str, Any], first: int) -> None:
        import wandb

        identity = fs.hash_json([str(run.resolve()), stage])[:16]
        with _writable_cache(run):
            self.run = wandb.init(
                project=PROJECT, group=name, name=f"{name}-{stage}", job_type=stage, id=identity, resume="allow",
                dir=str(run), config=dict(settings), reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
        self.location = str(self.run.url or f"offline, for `wandb sync`, in {Path(self.run.dir).parent}")
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")  # wandb drops a value whose own step went back

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def text(self, name: str, words: str) -> None:
        self.run.summary[name] = words

    def close(self) -> None:
        self.run.finish()


@contextlib.contextmanager
def _writable_cache(run: Path) -> Iterator[None]:
    """Give wandb a cache inside the run folder if the user's cache cannot be written.

    Without one, wandb's process logs to the terminal.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        (Path(given or Path.home() / ".cache") / "wandb").mkdir(parents=True, exist_ok=True)
    except OSError:
        os.environ["XDG_CACHE_HOME"] = str(run.resolve() / "wandb" / "cache")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("XDG_CACHE_HOME", None)
        else:
            os.environ["XDG_CACHE_HOME"] = given


class Trackio:
    """Log one stage to trackio as a run named RUN-STAGE, stored on this machine by default."""

    def __init__(self, run: Path, name: str, stage: str, settings: Mapping[str, Any], first: int) -> None:
        import trackio

        self.trackio = trackio
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.init(project=PROJECT, name=f"{name}-{stage}", group=name, config=dict(settings), resume="allow")
        self.location = f"trackio show --project {PROJECT}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.trackio.log(dict(values), step=step)

    def text(self, name: str, words: str) -> None:
        self.trackio.log({name: words})

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio.finish()


TRACKERS: dict[str, tuple[str, OpenTracker]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
    "trackio": ("trackio", Trackio),
}
"""Name in `report_to` -> (the package that it needs, the function that opens a stage in it)."""


def require(names: Sequence[str]) -> None:
    """Raise RlhfctlError if a tracker's package is not installed."""
    for name in names:
        package, _ = TRACKERS[name]
        if find_spec(package) is None:
            raise RlhfctlError(
                f"{package} is not installed",
                where="report_to",
                fix=f"pip install 'rlhfctl[{name}]', or take {name} out of report_to",
            )


class _TrackerListener:
    """Listen to the run's events: open a stage in each tracker when it starts, log its metrics, close it at its end."""

    def __init__(self, names: Sequence[str], run: Path, name: str, emit: Callable[[Event], None]) -> None:
        self.names, self.run, self.name, self.emit = names, run, name, emit
        self.stage: str | None = None
        self.step = 0  # the largest step reported so far
        self.open: list[Tracker] = []

    def __call__(self, event: Event, /) -> None:
        match event:
            case StageStarted():
                self.close()
                self.stage, self.step = event.stage, 0
                first = 0 if event.resumed_from is None else event.resumed_from + 1
                made = (TRACKERS[name][1] for name in self.names)
                self.open = [opened(self.run, self.name, event.stage, event.settings, first) for opened in made]
                for name, tracker in zip(self.names, self.open, strict=True):
                    self.emit(Note(stage=event.stage, message=f"{name}: {tracker.location}"))
            case Progress() if event.stage == self.stage:
                self.step = max(self.step, event.step)
            case Metrics() if event.stage == self.stage:
                self.step = max(self.step, event.step)
                self._log(event.step, event.values)
            case VerdictReached() if event.stage == self.stage:
                for tracker in self.open:
                    tracker.text("verdict", event.sentence)
            case StageFinished() if event.stage == self.stage:
                self._log(self.step, {f"final/{key}": value for key, value in event.metrics.items()})
                self.close()
            case StageFinished() | RunStopped():
                self.close()

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        for tracker in self.open if finite else ():
            tracker.log(step, finite)

    def close(self) -> None:
        """Close the open stage, if any, in each tracker."""
        for tracker in self.open:
            tracker.close()
        self.stage, self.open = None, []


@contextmanager
def tracking(
    names: Sequence[str], run: Path, name: str, emit: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """Yield an emitter that also sends events to the trackers. RlhfctlError at once if one is not installed."""
    if not names:
        yield emit
        return
    require(names)
    listener = _TrackerListener(names, run, name, emit)

    def emit_to_all(event: Event) -> None:
        emit(event)
        listener(event)

    try:
        yield emit_to_all
    finally:
        listener.close()
