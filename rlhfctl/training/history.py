"""Summarise the metrics of a training run for its manifest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def closing_means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over the last tenth of the updates (at least one); skip metrics that some of them lack."""
    last = history[-max(1, len(history) // 10) :]
    names = [name for name in last[-1] if all(name in entry for entry in last)] if last else []
    return {name: statistics.fmean(entry[name] for entry in last) for name in names}
