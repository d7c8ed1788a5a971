"""Write numbers as cells of tables. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlhfctl.dashboard.text import fixed, number


def plain(value: Any) -> str:
    if value is None:
        return "-"
    return number(value, 3) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def with_interval(value: float | None, interval: Sequence[float] | None, write: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    return write(value) + (f" [{write(interval[0])}, {write(interval[1])}]" if interval else "")


def p_value(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else fixed(value, 3)
