"""Send the metrics of every stage to experiment trackers, as the recipe's `report_to` names them.

A listener on the run's events, so that every stage reports alike: sft, reward, ppo with its evaluations, and the
verdict. Each stage is a run of its own in the tracker, in one project, and is closed when the stage ends. TensorBoard's
files stay in the run, under `tensorboard/STAGE`. A stage that resumes repeats no step. The libraries are imported only
where they are asked for. What they print is replaced by one note per stage that says where to look: the terminal is the
dashboard's.
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
    """A stage in a tracker. `place`: where it can be looked at, for people."""

    place: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add finite numbers at a step."""

    def text(self, name: str, words: str) -> None:
        """Add a sentence."""

    def close(self) -> None:
        """Say that the stage is over."""


Opened = Callable[[Path, str, str, Mapping[str, Any], int], Tracker]
"""(run folder, run's name, stage, settings, first step to come) -> the stage in the tracker."""


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, run: Path, name: str, stage: str, settings: Mapping[str, Any], first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard" / stage), purge_step=first or None)
        self.place = f"tensorboard --logdir {run / 'tensorboard'}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def text(self, name: str, words: str) -> None:
        self.writer.add_text(name, words)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases: named RUN-STAGE, grouped by run; a stage that resumes continues its own."""

    def __init__(self, run: Path, name: str, stage: str, settings: Mapping[str, Any], first: int) -> None:
        import wandb

        identity = fs.hash_json([str(run.resolve()), stage])[:16]
        with _writable_cache(run):
            self.run = wandb.init(
                project=PROJECT, group=name, name=f"{name}-{stage}", job_type=stage, id=identity, resume="allow",
                dir=str(run), config=dict(settings), reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
        self.place = str(self.run.url or f"offline, for `wandb sync`, in {Path(self.run.dir).parent}")
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")  # wandb's own steps only grow: one that lies behind is dropped

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def text(self, name: str, words: str) -> None:
        self.run.summary[name] = words

    def close(self) -> None:
        self.run.finish()


@contextlib.contextmanager
def _writable_cache(run: Path) -> Iterator[None]:
    """With a cache inside the run where the user's own cannot be written: wandb's process would log to the terminal."""
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
    """A run of trackio: named RUN-STAGE, kept on this machine unless trackio is told otherwise."""

    def __init__(self, run: Path, name: str, stage: str, settings: Mapping[str, Any], first: int) -> None:
        import trackio

        self.trackio = trackio
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.init(project=PROJECT, name=f"{name}-{stage}", group=name, config=dict(settings), resume="allow")
        self.place = f"trackio show --project {PROJECT}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.trackio.log(dict(values), step=step)

    def text(self, name: str, words: str) -> None:
        self.trackio.log({name: words})

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio.finish()


TRACKERS: dict[str, tuple[str, Opened]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
    "trackio": ("trackio", Trackio),
}
"""A name in `report_to` -> the package that it needs, and what opens a stage in it."""


def require(names: Sequence[str]) -> None:
    """Raise RlhfctlError where a tracker's package is not installed."""
    for name in names:
        package, _ = TRACKERS[name]
        if find_spec(package) is None:
            raise RlhfctlError(
                f"{package} is not installed",
                where="report_to",
                fix=f"pip install 'rlhfctl[{name}]', or take {name} out of report_to",
            )


class _Stages:
    """The listener: opens a stage in each tracker when it starts, closes it when it ends."""

    def __init__(self, names: Sequence[str], run: Path, name: str, emit: Callable[[Event], None]) -> None:
        self.names, self.run, self.name, self.emit = names, run, name, emit
        self.stage: str | None = None
        self.step = 0  # the largest that was reported
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
                    self.emit(Note(stage=event.stage, message=f"{name}: {tracker.place}"))
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
        """Close the stage that is open."""
        for tracker in self.open:
            tracker.close()
        self.stage, self.open = None, []


@contextmanager
def tracking(
    names: Sequence[str], run: Path, name: str, emit: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """Give an emitter that tells the trackers, too. RlhfctlError at once where one is not installed."""
    if not names:
        yield emit
        return
    require(names)
    stages = _Stages(names, run, name, emit)

    def tell(event: Event) -> None:
        emit(event)
        stages(event)

    try:
        yield tell
    finally:
        stages.close()
