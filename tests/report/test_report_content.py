"""The figures of a page: those of closed parts too, in order."""

from __future__ import annotations

from rlhfctl.report.content import Figures, Fold, Page, Section, Text
from rlhfctl.report.figures.spec import Figure


def test_figures_of_closed_parts_count() -> None:
    first, second, third = (Figure(name, name, {}) for name in "abc")
    inner = Fold("more", [Text("words"), Figures([second])])
    sections = [
        Section("s", "S", "Read it.", [Figures([first]), inner]),
        Section("t", "T", "Read it.", [Figures([third])]),
    ]
    assert Page("p", "", "", "", "", sections=sections).figures() == [first, second, third]
