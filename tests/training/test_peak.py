"""The highest memory of a stage: seen, forgotten again, given back."""

from __future__ import annotations

import sys

import pytest
import torch

from rlhfctl.training import peak

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="a process's resident size, as Linux tells it"
)
SIZE = 200_000_000


def test_a_peak_is_seen_and_forgotten_again() -> None:
    before = peak.resident_bytes()
    peak.restart()
    large = torch.ones(SIZE // 4)
    assert peak.resident_bytes() > before + 0.9 * SIZE
    del large
    assert peak.bytes_so_far() > before + 0.9 * SIZE
    peak.restart()
    assert peak.bytes_so_far() < before + 0.5 * SIZE


def test_what_is_freed_in_small_pieces_goes_back() -> None:
    many = [torch.ones(1000) for _ in range(SIZE // 4000)]
    last = torch.ones(1000)  # lies behind them: the heap cannot shrink by itself
    held = peak.resident_bytes()
    del many
    peak.give_back()
    assert peak.resident_bytes() < held - 0.5 * SIZE
    assert float(last.sum()) == 1000
