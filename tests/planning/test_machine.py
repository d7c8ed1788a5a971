"""Reading of the memory that this machine, or its container, has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhfctl.planning import machine

TOTAL, LIMIT = 8 << 30, 2 << 30


def files(monkeypatch: pytest.MonkeyPatch, limit: str, available_kb: int | None) -> None:
    """Fake a machine of 8 GiB with these files of the system."""
    meminfo = "MemTotal: 1 kB\n" + ("" if available_kb is None else f"MemAvailable:   {available_kb} kB\n")
    texts = {"memory.max": limit, "meminfo": meminfo}
    monkeypatch.setattr(machine, "_text", lambda file: texts[Path(file).name])
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": TOTAL // 4096}[name])


def test_a_container_with_a_limit_has_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, f"{LIMIT}\n", available_kb=1 << 20)
    assert machine.memory_bytes() == (LIMIT, 1 << 30)
    files(monkeypatch, f"{LIMIT}\n", available_kb=4 << 20)  # the machine has more than the container
    assert machine.memory_bytes() == (LIMIT, LIMIT)


def test_without_a_limit_the_whole_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, "max\n", available_kb=4 << 20)
    assert machine.memory_bytes() == (TOTAL, 4 << 30)


def test_a_system_that_says_nothing_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, "", available_kb=None)
    assert machine.memory_bytes() == (TOTAL, None)

    def silent(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", silent)
    assert machine.memory_bytes() == (None, None)
