"""Summarise a training run's metrics: what its manifest states of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def closing_means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the last tenth of the updates (at least one), where all of them have it."""
    last = history[-max(1, len(history) // 10) :]
    names = [name for name in last[-1] if all(name in entry for entry in last)] if last else []
    return {name: statistics.fmean(entry[name] for entry in last) for name in names}
