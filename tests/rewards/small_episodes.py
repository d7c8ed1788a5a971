"""Episodes made of a few words, for the tests of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhfctl.rewards.episode import Episode


def episodes(*completions: Any, **columns: Sequence[Any]) -> list[Episode]:
    """One episode a completion; columns hold a value for each."""
    rows: list[dict[str, Any]] = [
        {name: values[i] for name, values in columns.items()} for i in range(len(completions))
    ]
    return [
        Episode([1], [2], f"prompt {i}", completion, {"prompt": f"prompt {i}"} | rows[i])
        for i, completion in enumerate(completions)
    ]
