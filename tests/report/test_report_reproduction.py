"""The page of `reproduce gao` shows each statement's outcome, every fit and every measure."""

from __future__ import annotations

from typing import Any

import pytest
from made_reproduction import made_result

from rlhfctl.report.content import Page, Table
from rlhfctl.report.page import html_of
from rlhfctl.report.reproduction import page_of_reproduction


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
