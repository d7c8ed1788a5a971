"""`reproduce gao` refuses seeds of which no interval can be made, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_here

from rlhfctl.cli.reproduce import _seeds


@pytest.mark.parametrize("text", ["0", "0,0", "a,b", "", "0,-1"])
def test_fewer_than_two_different_seeds_are_refused(text: str, tmp_path: Path) -> None:
    result = run_here("reproduce", "gao", f"--seeds={text}", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "at least two different seeds are needed" in result.stderr and "fix: --seeds 0,1,2" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_read_in_order() -> None:
    assert _seeds("3,0,12") == [3, 0, 12]
