"""The short form of fuzz.py in the quick suite; the whole is 300 spoilt recipes and 300 spoilt data files."""

from __future__ import annotations

import pytest
from fuzz import fuzz


def test_spoilt_recipes_and_data_end_with_a_message() -> None:
    result = fuzz(26, 25, seed=1, runs=5)
    assert result.faults == [], result.table()
    outcomes = {case.outcome for case in result.cases}
    assert outcomes >= {"refused by validate", "refused by data", "ran"}


@pytest.mark.slow
def test_six_hundred_spoilt_recipes_and_data_files() -> None:
    result = fuzz(300, 300, seed=0, processes=6)
    assert result.faults == [], result.table()
