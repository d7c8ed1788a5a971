"""What a stage says while it works: a few frozen records, and a fan-out to those who listen.

Stages emit; the terminal, the plain log and `events.jsonl` are readers. Standard library only, so that a run can be
watched from a process that never loads torch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


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
    """A response to read: by the policy and, where known, by the reference to the same prompt."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    response: str
    reference: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


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
    """A stage is complete; its artifact lies at `path`. `skipped` says nothing had to be done."""

    kind: ClassVar[str] = "finished"
    path: str
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped: bool = False


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
