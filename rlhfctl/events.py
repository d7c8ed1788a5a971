"""Define the events that a stage emits while it works, send them to listeners, and report progress of long work.

Events are frozen records. Stages emit them; the terminal, the plain log and `events.jsonl` receive them. Imports the
standard library only, so that another process can watch a run without torch. Leaves out reading and writing
`events.jsonl` and drawing (dashboard).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

WORK_QUIET_S = 1.0
"""Seconds: counted work that ends sooner emits no event."""

WORK_EVERY_S = 0.25
"""Minimum seconds between two events about the same work."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of all events: the stage that emits it ("run" for the pipeline itself) and the time (Unix seconds)."""

    kind: ClassVar[str]
    stage: str
    time: float = field(default_factory=time.time)

    def to_record(self) -> dict[str, Any]:
        """Convert the event to one flat mapping for JSON, `event` first."""
        return {"event": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A command starts to run `stages`, in this order; `name` is the recipe's."""

    kind: ClassVar[str] = "run_started"
    name: str
    stages: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RunStopped(Event):
    """A command ended before its stages were complete; `reason` says why. A killed command leaves no such record."""

    kind: ClassVar[str] = "run_stopped"
    reason: str


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage starts. `settings` are the effective ones, with defaults; `resumed_from`: a checkpoint's step or None."""

    kind: ClassVar[str] = "started"
    total_steps: int | None = None
    resumed_from: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """A stage has done `step` of `total` units (None if unknown); `unit` is step, update, prompt or row."""

    kind: ClassVar[str] = "progress"
    step: int
    total: int | None
    unit: str = "step"
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Working(Event):
    """Work inside a stage that is not one of its steps goes on: reading, encoding, loading, sampling.

    `done` of `total` units are done (None: not countable), `seconds` after the work started. `over` is True in the last
    event about it.
    """

    kind: ClassVar[str] = "working"
    what: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    seconds: float = 0.0
    over: bool = False


@dataclass(frozen=True, kw_only=True)
class Metrics(Event):
    """A stage measured these named numbers at a step; `split` is train or eval."""

    kind: ClassVar[str] = "metrics"
    step: int
    values: Mapping[str, float]
    split: str = "train"
    total: int | None = None
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sample(Event):
    """The policy wrote `response` to `prompt`; `reference`: the reference model's response, if known; with scores."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    response: str
    reference: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    reference_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """A stage found a problem that does not stop the run but that the user should know."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A stage or the pipeline explains a decision: skipped because unchanged, starts again, moved an old folder."""

    kind: ClassVar[str] = "note"
    message: str


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A stage saved a checkpoint, from which training can resume after a kill."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class StageFinished(Event):
    """A stage is complete, with its artifact at `path`. `skipped`: it was complete before, and nothing ran.

    `peak_memory`: maximum bytes of GPU memory or, without a GPU, of the process's memory.
    """

    kind: ClassVar[str] = "finished"
    path: str
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped: bool = False
    peak_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageWaiting(Event):
    """A stage cannot go on before people have done their part. The command ends; the same command goes on later."""

    kind: ClassVar[str] = "waiting"
    message: str


@dataclass(frozen=True, kw_only=True)
class VerdictReached(Event):
    """The comparison reached a verdict: one word (better, worse, undecided, mixed) and a sentence."""

    kind: ClassVar[str] = "verdict"
    verdict: str
    sentence: str


class Listener(Protocol):
    """A function that receives one event per call."""

    def __call__(self, event: Event, /) -> None: ...


class FanOut:
    """Send each event to every listener in order."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self.listeners = list(listeners)

    def __call__(self, event: Event, /) -> None:
        for listener in self.listeners:
            listener(event)


KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        RunStarted,
        RunStopped,
        StageStarted,
        Progress,
        Working,
        Metrics,
        Sample,
        Warned,
        Note,
        CheckpointSaved,
        StageFinished,
        StageWaiting,
        VerdictReached,
    )
}
"""Map the `event` field of a record to its class."""


def from_record(record: Mapping[str, Any]) -> Event | None:
    """Rebuild an event from the record that `to_record` made; None for an event that this version does not have.

    Numbers that were not finite become NaN: strict JSON has null instead. Fields that this version does not have are
    ignored.
    """
    kind = KINDS.get(str(record.get("event")))
    if kind is None:
        return None
    names = {item.name for item in dataclasses.fields(kind)}
    values = {name: value for name, value in record.items() if name in names}
    for name in ("values", "scores", "reference_scores", "metrics"):
        if isinstance(values.get(name), Mapping):
            values[name] = {key: math.nan if number is None else number for key, number in values[name].items()}
    try:
        return kind(**values)
    except TypeError:  # a field that this version needs is missing
        return None


def transcript(text: Any) -> str:
    """Join a prompt or a response into one text: a string unchanged, messages by content, with roles if several."""
    if isinstance(text, str):
        return text
    if isinstance(text, Sequence) and all(isinstance(message, Mapping) for message in text):
        contents = [str(message.get("content", "")) for message in text]
        if len(contents) == 1:
            return contents[0]
        return "\n".join(
            f"{message.get('role', '')}: {content}" for message, content in zip(text, contents, strict=True)
        )
    return str(text)


# ---------------------------------------------------------------- progress of long work, in any part of the package

_reporter: ContextVar[tuple[Callable[[Event], None], str] | None] = ContextVar("reporter", default=None)


@contextmanager
def report_progress_to(emit: Callable[[Event], None], stage: str) -> Iterator[None]:
    """Send progress of long work inside the block to `emit`, under the name of `stage`.

    Work outside the block reports nothing.
    """
    token = _reporter.set((emit, stage))
    try:
        yield
    finally:
        _reporter.reset(token)


class Work:
    """Report the progress of work that may take long: a context manager that emits `Working` events, a few per second.

    Counted work (`advance`, `through`) emits nothing in its first second, and nothing at all if it ends sooner.
    Work that cannot be counted (`total` None) emits one event at its start and one at its end.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "row") -> None:
        self.what = what
        self.total = total
        self.unit = unit if total is not None else ""
        self._reporter = _reporter.get()
        self._began = time.monotonic()
        self._due = math.inf if self._reporter is None else self._began + WORK_QUIET_S
        self._done = 0
        self._emitted = False

    def advance(self, done: int) -> None:
        """Set the number of finished items, since the start; emit an event if one is due."""
        self._done = done
        if time.monotonic() >= self._due:
            self._emit()

    def through(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items one by one; count an item when the next one is requested."""
        with self:
            for index, item in enumerate(items):
                self.advance(index)
                yield item
            self._done += 1

    def __enter__(self) -> Work:
        if self.total is None and self._reporter is not None:
            self._emit()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Report the end of the work, if any event about it was emitted."""
        if self._emitted:
            self._emit(over=True)

    def _emit(self, *, over: bool = False) -> None:
        assert self._reporter is not None
        emit, stage = self._reporter
        now = time.monotonic()
        self._emitted, self._due = True, now + WORK_EVERY_S
        emit(
            Working(
                stage=stage,
                what=self.what,
                done=self._done,
                total=self.total,
                unit=self.unit,
                seconds=round(now - self._began, 3),
                over=over,
            )
        )
