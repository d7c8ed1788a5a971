"""The highest memory of a stage: seen, forgotten again, given back."""

from __future__ import annotations

import sys

import pytest
import torch

from rlhfctl.models import devices

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="a process's resident size, as Linux tells it"
)
SIZE = 200_000_000


def test_a_peak_is_seen_and_forgotten_again() -> None:
    before = devices.resident_bytes()
    devices.restart_peak()
    large = torch.ones(SIZE // 4)
    assert devices.resident_bytes() > before + 0.9 * SIZE
    del large
    assert devices.peak_bytes() > before + 0.9 * SIZE
    devices.restart_peak()
    assert devices.peak_bytes() < before + 0.5 * SIZE


def test_what_is_freed_in_small_pieces_goes_back() -> None:
    many = [torch.ones(1000) for _ in range(SIZE // 4000)]
    last = torch.ones(1000)  # lies behind them: the heap cannot shrink by itself
    held = devices.resident_bytes()
    del many
    devices.release_memory()
    assert devices.resident_bytes() < held - 0.5 * SIZE
    assert float(last.sum()) == 1000
