"""The short forms of the fuzzers; the whole is 300 recipes, data files and templates, and 300 of each shape of rows."""

from __future__ import annotations

import pytest
from fuzz import fuzz
from fuzz_shapes import SHAPES, fuzz_shapes
from fuzz_templates import fuzz_templates


@pytest.mark.ci
def test_spoilt_recipes_and_data_end_with_a_message() -> None:
    result = fuzz(20, 18, seed=1, runs=5)
    assert result.faults == [], result.table()
    outcomes = {case.outcome for case in result.cases}
    assert outcomes >= {"refused by validate", "refused by data", "ran"}


@pytest.mark.slow
def test_six_hundred_spoilt_recipes_and_data_files() -> None:
    result = fuzz(300, 300, seed=0, processes=6)
    assert result.faults == [], result.table()


def test_spoilt_rows_of_every_shape_are_used_refused_or_counted() -> None:
    result = fuzz_shapes(12, seed=1)
    assert result.faults == [], result.table()
    assert result.outcomes.keys() == SHAPES.keys()
    assert all(found.keys() >= {"used", "refused"} for found in result.outcomes.values()), result.table()


@pytest.mark.slow
def test_three_hundred_of_each_shape() -> None:
    result = fuzz_shapes(300, seed=0)
    assert result.faults == [], result.table()


def test_conversations_through_fifty_templates_are_whole_refused_or_counted() -> None:
    result = fuzz_templates(50, seed=1)
    assert result.faults == [], result.table()
    outcomes = {outcome for found in result.outcomes.values() for outcome in found}
    assert outcomes == {"used", "refused", "rows dropped"}, result.table()


@pytest.mark.slow
def test_three_hundred_templates() -> None:
    result = fuzz_templates(300, seed=0)
    assert result.faults == [], result.table()
