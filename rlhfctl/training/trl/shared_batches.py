"""Divide each batch of TRL's trainers over the processes, so that a step is that of one process.

TRL's `per_device_train_batch_size` counts rows per process: two processes would take steps on twice as many rows. Here
it counts the rows of all processes together. Each batch that one process would train on is divided: no process has over
one row more than another. Steps, learning rates and metrics are then those of one process, and a run can go on in
another number of processes.

The last batch of an epoch may have fewer rows than there are processes. A process without a row runs a blank one, whose
loss counts nothing, because all processes take part in every backward pass.

With one process everything is TRL's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from accelerate.data_loader import DataLoaderShard
from torch.utils.data import BatchSampler, DataLoader, Dataset
from trl import SFTTrainer

from rlhfctl.data.encoding import IGNORED
from rlhfctl.models.processes import Processes
from rlhfctl.training.trl.divided import DividedWeights

_KEPT = ("num_workers", "pin_memory", "worker_init_fn", "multiprocessing_context", "persistent_workers")
_BLANK = "blank"


class Parts(BatchSampler):
    """The part of each batch of indices that belongs to one process.

    A blank row is written as -1 - index of the row that it copies.
    """

    def __init__(self, batches: Any, processes: Processes) -> None:
        self.batches = batches
        self.processes = processes
        self.sampler = batches.sampler  # accelerate tells it the epoch
        self.batch_size = batches.batch_size
        self.drop_last = batches.drop_last

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield self.processes.share(batch) or [-1 - batch[0]]

    def __len__(self) -> int:
        return len(self.batches)


class Rows(Dataset):
    """The rows of a dataset, and a blank copy of row i as row -1 - i."""

    total_dataset_length = 0  # so that accelerate does not cut what it gathers at the end of an epoch

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index]) if index >= 0 else dict(self.rows[-1 - index]) | {_BLANK: True}


class SharedBatches:
    """A part of a Trainer: its batches are divided over the processes. `blanked` makes a batch count nothing."""

    blanked: Callable[[dict[str, Any]], dict[str, Any]]
    get_train_dataloader: Callable[[], Any]

    @property
    def processes(self) -> Processes:
        """The processes that train together."""
        return Processes.here()

    def in_parts(self, loader: Any) -> Any:
        """Return a loader of this process's part of each batch; `loader` itself with one process."""
        if self.processes.count == 1:
            return loader
        whole = loader.batch_sampler.batch_sampler  # accelerate has put its own division around it
        kept = {name: getattr(loader, name) for name in _KEPT}
        if loader.num_workers:
            kept["prefetch_factor"] = loader.prefetch_factor
        return DataLoaderShard(
            Rows(loader.dataset),
            device=loader.device,
            rng_types=loader.rng_types,
            synchronized_generator=loader.synchronized_generator,
            batch_sampler=Parts(whole, self.processes),
            collate_fn=_Collator(loader.collate_fn, self.blanked),
            **kept,
        )


class _Collator:
    """Collate rows as `collate` does; a batch of a blank row goes through `blanked`."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]], blanked: Callable[..., Any]) -> None:
        self.collate, self.blanked = collate, blanked

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        blank = [row.pop(_BLANK, False) for row in rows]
        batch = self.collate(rows)
        return self.blanked(batch) if any(blank) else batch


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """Make a batch of TRL's SFTTrainer count nothing: no token of it is learned, and none is counted."""
    batch["labels"] = batch["labels"].fill_(IGNORED)
    return batch


class SharedSftTrainer(SharedBatches, DividedWeights, SFTTrainer):
    """TRL's SFTTrainer, with each batch divided over the processes; its loss is a mean over all their tokens."""

    blanked = staticmethod(without_labels)

    def get_train_dataloader(self) -> DataLoader:
        return self.in_parts(super().get_train_dataloader())
