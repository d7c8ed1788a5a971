"""Batches divided over processes: every row once, blank rows that count nothing, and the steps of one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from small_trainer import trainer
from thread_processes import in_group
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.training.trl.shared_batches import Parts, Rows, SharedBatches, without_labels


class Loader(DataLoader[Any]):
    """A loader with what accelerate adds to one that it prepares; `inner` stands for its division of the batches."""

    device = None
    rng_types = None
    synchronized_generator = None


class Divided:
    """Stands for accelerate's own division of batches, which is taken off again."""

    def __init__(self, batch_sampler: BatchSampler) -> None:
        self.batch_sampler = batch_sampler

    def __iter__(self) -> Any:
        raise AssertionError("accelerate's division is not used")


class Trainer(SharedBatches):
    """As much of a trainer as the division of batches needs."""

    blanked = staticmethod(without_labels)

    def __init__(self, own: Processes) -> None:
        self.own = own

    @property
    def processes(self) -> Processes:
        return self.own


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "ids": torch.tensor([row["ids"] for row in rows]),
        "labels": torch.tensor([[row["ids"]] * 2 for row in rows]),
    }


def batches(count: int) -> BatchSampler:
    return BatchSampler(SequentialSampler(range(count)), batch_size=4, drop_last=False)


def test_each_batch_is_divided_and_a_process_without_a_row_gets_a_blank_one() -> None:
    parts = [list(Parts(batches(9), Processes(number, 3))) for number in range(3)]
    assert parts == [[[0], [4], [-9]], [[1], [5], [-9]], [[2, 3], [6, 7], [8]]]
    assert [len(Parts(batches(9), Processes(number, 3))) for number in range(3)] == [3, 3, 3]


def test_a_blank_row_copies_a_row_and_is_marked() -> None:
    rows = Rows(Dataset.from_list([{"ids": 5}, {"ids": 6}]))
    assert len(rows) == 2 and rows[1] == {"ids": 6} and rows[-1 - 1] == {"ids": 6, "blank": True}


def test_one_process_keeps_its_loader() -> None:
    loader = Loader(range(3))
    assert Trainer(ALONE).in_parts(loader) is loader


def test_the_processes_together_see_every_row_once_and_learn_nothing_from_blank_ones() -> None:
    def work(own: Processes) -> list[tuple[list[int], bool]]:
        rows = Dataset.from_list([{"ids": number} for number in range(9)])
        whole = Loader(rows, batch_sampler=Divided(batches(9)), collate_fn=collate)  # type: ignore[arg-type]
        seen = Trainer(own).in_parts(whole)
        return [(batch["ids"].tolist(), bool((batch["labels"] == -100).all())) for batch in seen]

    made = in_group(3, work)
    steps = [[ids for ids, blank in step if not blank] for step in zip(*made, strict=True)]
    assert [[one for ids in step for one in ids] for step in steps] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert [sum(blank for _, blank in step) for step in zip(*made, strict=True)] == [0, 0, 2]


@pytest.mark.parametrize("blank", [False, True])
def test_a_blank_batch_has_no_token_to_learn(blank: bool, tmp_path: Path) -> None:
    made = trainer(tmp_path, lambda event: None)
    row = {"input_ids": [2, 3, 2, 0], "labels": [2, 3, 2, 0]}
    batch = made.data_collator([dict(row)])
    batch = without_labels(batch) if blank else batch
    loss = partial(made.compute_loss, made.model.train())(batch, num_items_in_batch=torch.tensor(3))
    assert (loss.item() == 0.0) is blank
