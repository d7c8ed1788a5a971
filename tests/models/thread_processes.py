"""Several processes as threads of one: what they tell each other is copied, as if it went over a network."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhfctl.models.processes import Processes

T = TypeVar("T")
_PATIENCE_S = 20.0  # a thread that fails leaves the others at the barrier


@dataclass
class Meeting:
    """The place where threads leave what they tell each other."""

    count: int
    given: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.given = [b""] * self.count
        self.barrier = threading.Barrier(self.count)


@dataclass(frozen=True)
class ThreadProcesses(Processes):
    """Processes whose messages go through a Meeting."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def _exchange(self, own: Any) -> list[Any]:
        self.meeting.given[self.number] = pickle.dumps(own)
        self.meeting.barrier.wait(_PATIENCE_S)
        every = [pickle.loads(one) for one in self.meeting.given]
        self.meeting.barrier.wait(_PATIENCE_S)
        return every

    def _tell(self, said: Any) -> Any:
        return self._exchange(said)[0]

    def _add_up(self, tensor: Tensor) -> None:
        total = torch.zeros_like(tensor)
        for one in self._exchange(tensor):
            total += one
        tensor.copy_(total)

    def _send(self, tensor: Tensor) -> None:
        tensor.copy_(self._exchange(tensor)[0])


def group(count: int) -> list[Processes]:
    """Make `count` processes that can talk to each other, for one thread each."""
    meeting = Meeting(count)
    return [ThreadProcesses(number, count, meeting) for number in range(count)]


def together(works: Sequence[Callable[[], T]]) -> list[T]:
    """Call each of `works` in a thread of its own; return their results, or raise the first error."""
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((one for one in errors if not isinstance(one, threading.BrokenBarrierError)), errors[0])
    return results


def in_group(count: int, work: Callable[[Processes], T]) -> list[T]:
    """Call `work` with each of `count` processes, all at once; return their results."""
    return together([partial(work, own) for own in group(count)])
