"""The short forms of fuzz.py and fuzz_shapes.py; the whole is 300 recipes, 300 data files and 300 of each shape."""

from __future__ import annotations

import pytest
from fuzz import fuzz
from fuzz_shapes import SHAPES, fuzz_shapes


def test_spoilt_recipes_and_data_end_with_a_message() -> None:
    result = fuzz(26, 25, seed=1, runs=5)
    assert result.faults == [], result.table()
    outcomes = {case.outcome for case in result.cases}
    assert outcomes >= {"refused by validate", "refused by data", "ran"}


@pytest.mark.slow
def test_six_hundred_spoilt_recipes_and_data_files() -> None:
    result = fuzz(300, 300, seed=0, processes=6)
    assert result.faults == [], result.table()


def test_spoilt_rows_of_every_shape_are_used_refused_or_counted() -> None:
    result = fuzz_shapes(20, seed=1)
    assert result.faults == [], result.table()
    assert result.outcomes.keys() == SHAPES.keys()
    assert all(found.keys() >= {"used", "refused"} for found in result.outcomes.values()), result.table()


@pytest.mark.slow
def test_three_hundred_of_each_shape() -> None:
    result = fuzz_shapes(300, seed=0)
    assert result.faults == [], result.table()
