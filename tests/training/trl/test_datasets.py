"""The data set of a trainer: the rows that were given, in order, also where they come in several parts."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from rlhfctl.training.trl import datasets
from rlhfctl.training.trl.datasets import dataset_of


@pytest.mark.parametrize("together", [2, 5, 1_000])
def test_rows_in_parts_are_the_rows_of_one_list(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_TOGETHER", together)
    rows: list[dict[str, Any]] = [{"ids": [[number], [1] * number], "margin": number / 2} for number in range(5)]
    found = dataset_of(iter(rows))
    whole = Dataset.from_list(rows)
    assert found.to_list() == rows and found.features == whole.features and len(found) == 5
    assert found[3] == whole[3] and len(dataset_of([])) == 0
