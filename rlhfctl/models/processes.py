"""Share work among the processes of a stage, and exchange what they computed: the only place that talks to the group.

A loop reads the same for one process and for many. With one process nothing is sent, and every function returns what
it was given. With several, each process does its share of the costly work (sampling, forwards, backwards); what comes
of it is exchanged, so that all hold the same numbers and take the same decisions.

Reads the variables that torchrun and `accelerate launch` set (RANK, WORLD_SIZE, LOCAL_RANK). Leaves out starting the
processes, which launching.py does, and the gradients of TRL's trainers, which accelerate adds up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from rlhfctl.errors import RlhfctlError

T = TypeVar("T")
R = TypeVar("R")

_WAIT = timedelta(days=7)  # a reward function may take hours; when a process dies, the launcher ends the others
_BUCKET = 1 << 24  # numbers that are added up in one message: 64 MiB in float32


_keepers: list[Callable[[], AbstractContextManager[None]]] = [nullcontext]  # the last one keeps step


def keep_in_step_with(keeper: Callable[[], AbstractContextManager[None]]) -> None:
    """Let `Processes.in_step` use `keeper` from now on: models/sharding.py's, where a model is divided."""
    _keepers.append(keeper)


def join() -> None:
    """Join the group of processes that a launcher started this one in; nothing without a launcher or others."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # or accelerate takes this process for the only one
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_WAIT)


@dataclass(frozen=True)
class Processes:
    """The processes that run a stage together; `number` is this one's, from 0, of `count`. Number 0 publishes.

    All methods except `share` are collective: every process calls them, in the same order.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Return the group that this process has joined; alone without one."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Tell whether this is the process that writes files and emits events."""
        return self.number == 0

    def settings(self) -> dict[str, int]:
        """Return the number of processes for the settings that a stage reports; nothing if there is one."""
        return {"processes": self.count} if self.count > 1 else {}

    # ------------------------------------------------------------ shares of work

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's part of `items`: neighbours, and no process has over one more than another."""
        size = len(items)
        return list(items[size * self.number // self.count : size * (self.number + 1) // self.count])

    def over(self, items: Sequence[T], work: Callable[[list[T]], Sequence[R]]) -> list[R]:
        """Do `work` on this process's share of `items`; return one result per item of all processes, in order."""
        if self.count == 1:
            return list(work(list(items)))
        own = self.share(items)
        with self.in_step():
            done = list(work(own)) if own else []
        parts: list[Sequence[R]] = self._exchange(done)
        return [one for part in parts for one in part]

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process alone; return its result, or raise its error, in all of them.

        Only an RlhfctlError is sent. Another exception ends the first process, and the launcher then ends the others.
        """
        if self.count == 1:
            return make()
        said: tuple[Any, RlhfctlError | None] = (None, None)
        if self.first:
            try:
                said = (make(), None)
            except RlhfctlError as error:
                said = (None, error)
        value, failed = self._tell(said)
        if failed is not None:
            raise failed
        result: T = value
        return result

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Let each process do its own number of forwards inside the block.

        Where the weights of a model are divided over the processes, each forward needs all of them: a process that has
        done its part then helps the others (models/sharding.py). Without such a model nothing happens.
        """
        with nullcontext() if self.count == 1 else _keepers[-1]():
            yield

    def wait(self) -> None:
        """Wait until every process has come this far."""
        self.over(range(self.count), lambda numbers: [None])

    # ------------------------------------------------------------ tensors

    def sum_over(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the processes; all of them get the same bits.

        A table in which each process has filled its own rows, and left zeros elsewhere, becomes the whole table.
        """
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([one.reshape(-1) for one in bucket])
            self._add_up(flat)
            for one, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.copy_(part.view_as(one))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients over the processes. A parameter without one in every process keeps none.

        Those of divided parameters (models/sharding.py) are left as they are: the backward pass has added them up.
        """
        parameters = [one for one in parameters if not isinstance(one, DTensor)]
        if self.count == 1:
            return
        has = torch.tensor([float(one.grad is not None) for one in parameters])
        self._add_up(has)
        used = [one for one, any_has in zip(parameters, has.tolist(), strict=True) if any_has]
        with torch.no_grad():
            for one in used:
                if one.grad is None:
                    one.grad = torch.zeros_like(one)
            self.sum_over(one.grad for one in used if one.grad is not None)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of all processes with those of the first; divided ones are left as they are."""
        if self.count > 1:
            for one in [one for one in tensors if not isinstance(one, DTensor)]:
                self._send(one.data)

    # ------------------------------------------------------------ messages; tests replace these four

    def _exchange(self, own: Any) -> list[Any]:
        """Return what every process gave, in the order of their numbers."""
        given: list[Any] = [None] * self.count
        dist.all_gather_object(given, own)
        return given

    def _tell(self, said: Any) -> Any:
        """Return what the first process said."""
        box = [said]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _add_up(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over the processes."""
        dist.all_reduce(tensor)

    def _send(self, tensor: Tensor) -> None:
        """Overwrite a tensor with that of the first process."""
        whole = tensor.contiguous()
        dist.broadcast(whole, src=0)
        if whole is not tensor:
            tensor.copy_(whole)


ALONE = Processes()


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group tensors of one number format and device, up to about _BUCKET numbers together."""
    buckets: list[list[Tensor]] = []
    last: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    sizes: dict[int, int] = {}
    for one in tensors:
        key = (one.dtype, one.device)
        bucket = last.get(key)
        if bucket is None or sizes[id(bucket)] + one.numel() > _BUCKET:
            bucket = []
            last[key] = bucket
            buckets.append(bucket)
            sizes[id(bucket)] = 0
        bucket.append(one)
        sizes[id(bucket)] += one.numel()
    return buckets
