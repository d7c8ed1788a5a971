"""The pages of `reproduce gao` and `rloo` show each statement's outcome and every measure, fit and end."""

from __future__ import annotations

from typing import Any

import pytest
from made_reproduction import made_comparison, made_result

from rlhfctl.report.content import Page, Table
from rlhfctl.report.page import html_of
from rlhfctl.report.reproduction import page_of_algorithms, page_of_reproduction


@pytest.fixture
def result() -> dict[str, Any]:
    return made_result()


def tables(page: Page) -> list[Table]:
    return [part for section in page.sections for part in section.parts if isinstance(part, Table)]


def test_the_headline_counts_gaos_statements(result: dict[str, Any]) -> None:
    page = page_of_reproduction(result)
    assert page.headline.startswith("of the 3 statements of Gao et al., 1 held, 1 did not, and of 1 ")
    (outcomes, *_) = tables(page)
    assert [list(row) for row in outcomes.rows] == [
        ["premise", "held", "premise says so"],
        ["Gao 1", "held", "Gao 1 says so"],
        ["Gao 2", "did not hold", "Gao 2 says so"],
        ["Gao 3", "cannot tell", "Gao 3 says so"],
        ["Coste 1", "cannot tell", "Coste 1 says so"],
    ]


def test_fits_and_measures_are_in_the_tables(result: dict[str, Any]) -> None:
    page = page_of_reproduction(result)
    _, fits, measures = tables(page)
    # Alphas 2 and 4: mean 3, and Student's t of one degree of freedom is 12.7062 times the standard error 1.
    assert [row[:3] for row in fits.rows[:2]] == [
        ["best of n: d (alpha - beta d)", "9", "3.00 [-9.71, 15.71]"],
        ["best of n: d (alpha - beta d)", "10", "3.00 [-9.71, 15.71]"],
    ]
    assert len(fits.rows) == 4
    assert list(measures.rows[3]) == ["Gao 3", "number of Gao 3", "0.50 [0.25, 0.75]", "above 0", "cannot tell"]


def test_the_page_is_written(result: dict[str, Any]) -> None:
    html = html_of(page_of_reproduction(result), "runs/gao")
    assert "Gao 2 says so" in html and "did not hold" in html


def test_the_page_of_algorithms_has_outcomes_ends_and_measures() -> None:
    page = page_of_algorithms(made_comparison())
    assert page.headline.startswith("of the 2 statements, 1 held, 0 did not, and of 1 ")
    outcomes, ends, measures = tables(page)
    assert [row[1] for row in outcomes.rows] == ["held", "cannot tell"]
    # Gold of 1 and 3: mean 2, and 12.7062 times the standard error 1.
    assert list(ends.rows[0])[:2] == ["ppo", "2.00 [-10.71, 14.71]"] and len(ends.rows) == 8
    assert len(measures.rows) == 2
    assert "Algorithms side by side" in html_of(page, "runs/rloo")
