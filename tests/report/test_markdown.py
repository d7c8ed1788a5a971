"""The report as Markdown: its parts, and text of models that cannot become markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import make_run
from markdown_it import MarkdownIt

from rlhfctl.report.facts.gather import gather
from rlhfctl.report.markdown import markdown_of
from rlhfctl.report.sections import page_of


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return markdown_of(
        page_of(gather(make_run(tmp_path_factory.mktemp("md") / "one", nasty=True, prompts=30, gain=0.6)))
    )


def test_it_begins_with_the_verdict_and_has_every_section(text: str) -> None:
    assert text.startswith("# one\n\n**better**: The trained model wins ")
    for heading in ("Largest gains, by gold", "Largest losses, by gold", "Can I trust it?", "Win rates", "Lineage"):
        assert f"\n## {heading}\n" in text
    assert "| Win rate |" in text and "- Win rates: Win rates with 95% intervals: gold " in text


def test_text_of_models_is_no_markup(text: str) -> None:
    """A reader that allows HTML finds none, and no code block ends early."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<script" not in html and "<img" not in html and "<b>" not in html
    assert "&lt;script&gt;window.ran" in html
    assert "<strong>stars</strong>" not in html


def test_tables_have_equally_many_cells_in_each_row(text: str) -> None:
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") >= 8
    for table in html.split("<table>")[1:]:
        rows = table.split("</table>")[0].split("<tr>")[1:]
        assert len({row.count("<td") + row.count("<th") for row in rows}) == 1


def test_a_fence_is_longer_than_any_in_the_text(tmp_path: Path) -> None:
    page = page_of(gather(make_run(tmp_path / "one", nasty=True)))
    assert "\n````text\nprompt: prompt 0" in markdown_of(page)  # the planted text has a fence of three
