"""Make the data set that TRL's trainers read: an Arrow table of encoded rows, which come one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, concatenate_datasets

_TOGETHER = 1_000  # rows that are Python objects at the same time


def dataset_of(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Make a data set of rows with the same columns, in which an id takes 8 bytes, without holding them as objects."""
    given = iter(rows)
    parts = [Dataset.from_list(part) for part in iter(lambda: list(itertools.islice(given, _TOGETHER)), [])]
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0] if parts else Dataset.from_list([])
