"""Write a report as Markdown, for an issue, a chat or a text editor. Pure: text of models stands in code blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rlhfctl.dashboard.text import number
from rlhfctl.report.content import (
    Code,
    Example,
    Figures,
    Fold,
    Heading,
    Legend,
    Page,
    Part,
    Samples,
    Table,
    Text,
    Tokens,
)

_MARKS = {"good": "yes", "caution": "caution", "bad": "no", "unknown": "?"}


def markdown_of(page: Page) -> str:
    """Write the page. Charts become their content in words."""
    return "\n".join(_lines(page)).rstrip() + "\n"


def _lines(page: Page) -> Iterator[str]:
    word = f"**{page.word}**: " if page.word else ""
    yield from (f"# {_plain(page.title)}", "", f"{word}{_plain(page.headline)}", "", _plain(page.meaning), "")
    if page.sentence:
        yield from (f"> {_plain(page.sentence)}", "")
    if page.numbers:
        yield from _table(["", "", ""], [[one.label, one.value, one.detail] for one in page.numbers])
    for title, examples in (("Largest gains", page.gains), ("Largest losses", page.losses)):
        if examples:
            yield from (f"## {title}, by {_plain(page.judge)}", "")
            for example in examples:
                yield from _example(example, page.judge)
    if page.checks:
        yield from ("## Can I trust it?", "")
        yield from _table(["", "", ""], [[_MARKS[one.mark], one.title, one.text] for one in page.checks])
    for section in page.sections:
        written = [line for part in section.parts for line in _part(part)]
        if written:
            yield from (f"## {section.title}", "", section.how_to_read, "", *written)


def _part(part: Part) -> Iterator[str]:
    match part:
        case Text():
            yield from (f"**{_plain(part.text)}**" if part.strong else _plain(part.text), "")
        case Heading():
            yield from (f"### {_plain(part.text)}", "")
        case Table():
            yield from _table(part.headings, part.rows)
            yield from (_plain(part.caption), "") if part.caption else ()
        case Code():
            yield from _block(part.text)
        case Figures():
            yield from (f"- {_plain(figure.title)}: {_plain(figure.alt)}" for figure in part.figures)
            yield ""
        case Legend():
            pass
        case Fold():
            for inner in part.parts:
                yield from _part(inner)
        case Samples():
            yield from (f"{len(part.pairs):,} pairs are on the page in HTML and in compare/samples.jsonl.", "")
        case Tokens():
            yield from (f"{len(part.episodes)} traced episodes: rlhfctl report RUN shows them in HTML.", "")


def _example(example: Example, judge: str) -> Iterator[str]:
    pair = example.pair
    before, after = (number(scores[judge], 3) for scores in (pair.reference_scores, pair.policy_scores))
    yield from _block(
        f"prompt: {pair.prompt}\n\nreference ({before}): {pair.reference}\n\npolicy ({after}): {pair.policy}"
    )


def _block(text: str) -> Iterator[str]:
    """Write text of any content as a code block: the fence is longer than any run of its character in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (fence + "text", text.rstrip("\n"), fence, "")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield "| " + " | ".join(_cell(heading) for heading in headings) + " |"
    yield "| " + " | ".join("---" for _ in headings) + " |"
    yield from ("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    yield ""


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Write text on one line so that nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", " ".join(text.split()))
