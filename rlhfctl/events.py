"""What a stage says while it works: a few frozen records, and a fan-out to those who listen.

Stages emit; the terminal, the plain log and `events.jsonl` are readers. Standard library only, so that a run can be
watched from a process that never loads torch.
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
"""Counted work that is done sooner is not worth a word."""

WORK_EVERY_S = 0.25
"""Seconds between two words about the same work."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Common to all: the stage that speaks ("run" for the pipeline itself) and when (Unix seconds)."""

    kind: ClassVar[str]
    stage: str
    time: float = field(default_factory=time.time)

    def to_record(self) -> dict[str, Any]:
        """The event as one flat JSON-ready mapping, `event` first."""
        return {"event": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A command begins to bring `stages` up to date, in this order; `name` is the recipe's."""

    kind: ClassVar[str] = "run_started"
    name: str
    stages: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RunStopped(Event):
    """The command ended before its stages were complete, for this reason. A kill leaves no such record."""

    kind: ClassVar[str] = "run_stopped"
    reason: str


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage begins. `settings` are the effective ones, after every default; `resumed_from` is a step or None."""

    kind: ClassVar[str] = "started"
    total_steps: int | None = None
    resumed_from: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """`step` of `total` done (total None while unknown); `unit` says of what: step, update, prompt, row."""

    kind: ClassVar[str] = "progress"
    step: int
    total: int | None
    unit: str = "step"
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Working(Event):
    """Work inside a stage beside its own steps (reading, encoding, loading, sampling), `seconds` after it began.

    `done` of `total` (None: it cannot be counted); `over` is said once, last.
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
    """Named numbers at a step; `split` is train or eval."""

    kind: ClassVar[str] = "metrics"
    step: int
    values: Mapping[str, float]
    split: str = "train"
    total: int | None = None
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sample(Event):
    """A response to read: by the policy and, where known, by the reference to the same prompt, each with its scores."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    response: str
    reference: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    reference_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something the user should know that did not stop the run."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A plain sentence about what was decided: skipped because unchanged, starts over, moved aside."""

    kind: ClassVar[str] = "note"
    message: str


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """Training can go on from here after a kill."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class StageFinished(Event):
    """A stage is complete; its artifact lies at `path`. `skipped` says nothing had to be done.

    `peak_memory`: the most bytes that it held, of the GPU's memory or, without one, of the process's.
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
    """The comparison's result: one word (better, worse, undecided, mixed), and the sentence about it."""

    kind: ClassVar[str] = "verdict"
    verdict: str
    sentence: str


class Listener(Protocol):
    """Anything that takes events one at a time."""

    def __call__(self, event: Event, /) -> None: ...


class FanOut:
    """Hands each event to every listener in order."""

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
"""What a record's `event` says -> the class that wrote it."""


def from_record(record: Mapping[str, Any]) -> Event | None:
    """The event that `to_record` gave, read back from JSON; None for one that this version does not know.

    Numbers that were not finite come back as NaN: strict JSON holds null in their place. Fields that this version does
    not have are passed over.
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
    """A prompt or a response as one text: a string as it is, of messages their contents (with roles where several)."""
    if isinstance(text, str):
        return text
    if isinstance(text, Sequence) and all(isinstance(message, Mapping) for message in text):
        contents = [str(message.get("content", "")) for message in text]
        if len(contents) == 1:
            return contents[0]
        return "\n".join(f"{message.get('role', '')}: {said}" for message, said in zip(text, contents, strict=True))
    return str(text)


# ---------------------------------------------------------------- long work, wherever it is done

_told: ContextVar[tuple[Callable[[Event], None], str] | None] = ContextVar("told", default=None)


@contextmanager
def report_progress_to(emit: Callable[[Event], None], stage: str) -> Iterator[None]:
    """Inside, long work says how far it is to `emit`, under the name of `stage`; outside it is silent."""
    token = _told.set((emit, stage))
    try:
        yield
    finally:
        _told.reset(token)


class Work:
    """A context manager around work that may take long: it says how far it is, seldom enough to cost nothing.

    What is counted (`at`, `through`) is silent at first, and altogether where it is quick. What cannot be counted
    (`total` None) says that it begins and that it is over: in between nobody could.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "row") -> None:
        self.what = what
        self.total = total
        self.unit = unit if total is not None else ""
        self._told = _told.get()
        self._began = time.monotonic()
        self._due = math.inf if self._told is None else self._began + WORK_QUIET_S
        self._done = 0
        self._said = False

    def at(self, done: int) -> None:
        """So many are done."""
        self._done = done
        if time.monotonic() >= self._due:
            self._say()

    def through(self, items: Iterable[T]) -> Iterator[T]:
        """The items one by one, each counted once the next is asked for."""
        with self:
            for index, item in enumerate(items):
                self.at(index)
                yield item
            self._done += 1

    def __enter__(self) -> Work:
        if self.total is None and self._told is not None:
            self._say()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """It is over."""
        if self._said:
            self._say(over=True)

    def _say(self, *, over: bool = False) -> None:
        assert self._told is not None
        emit, stage = self._told
        now = time.monotonic()
        self._said, self._due = True, now + WORK_EVERY_S
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
