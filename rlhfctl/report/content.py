"""Define the parts of a report: numbers, checks, tables, texts, figures, samples, each in sections with a heading.

Pure records. `sections.py` and `several.py` fill them; `page.py` writes them as HTML, `markdown.py` as Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhfctl.report.facts.records import Pair
from rlhfctl.report.figures.spec import Figure

Mark = Literal["good", "caution", "bad", "unknown"]


@dataclass(frozen=True)
class Number:
    """One of the numbers of the first screen. `interval` and `chance` are drawn as a small bar from 0 to 1."""

    label: str
    value: str
    detail: str
    interval: tuple[float, float] | None = None
    at: float | None = None


@dataclass(frozen=True)
class Check:
    """An answer to "can I trust this?": a mark, what was looked at, and what was found."""

    mark: Mark
    title: str
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; a `strong` one says what the section comes to."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of text cells. Columns in `right` hold numbers; those in `whole` are not broken into lines."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    right: frozenset[int] = frozenset()
    whole: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Code:
    """Text to copy: commands or a recipe."""

    text: str
    label: str


@dataclass(frozen=True)
class Example:
    """A pair of responses that is shown in full on the first screen."""

    pair: Pair
    change: float


@dataclass(frozen=True)
class Samples:
    """The table of paired samples. `left_out` pairs did not fit."""

    pairs: Sequence[Pair]
    judges: Sequence[str]
    primary: str
    left_out: int = 0


@dataclass(frozen=True)
class Tokens:
    """Traced episodes, to be shown token by token."""

    episodes: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figures:
    """Figures side by side."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Legend:
    """The colours of several runs or seeds, for all figures that follow."""

    names: Sequence[str]


@dataclass(frozen=True)
class Fold:
    """Parts that are closed until they are asked for."""

    title: str
    parts: Sequence[Part]


Part = Text | Heading | Table | Code | Samples | Tokens | Figures | Legend | Fold


@dataclass(frozen=True)
class Section:
    """A section: its heading, one sentence that says how to read it, and its parts."""

    name: str
    title: str
    how_to_read: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A whole report. `word` is the verdict's: better, worse, undecided, mixed, or empty."""

    title: str
    subtitle: str
    word: str
    headline: str
    meaning: str
    sentence: str = ""  # as `run` prints it
    numbers: Sequence[Number] = ()
    gains: Sequence[Example] = ()
    losses: Sequence[Example] = ()
    judge: str = ""
    checks: Sequence[Check] = ()
    sections: Sequence[Section] = field(default_factory=tuple)

    def figures(self) -> list[Figure]:
        """List all figures, those of closed parts included."""
        return [figure for section in self.sections for figure in _figures(section.parts)]


def _figures(parts: Sequence[Part]) -> list[Figure]:
    found: list[Figure] = []
    for part in parts:
        if isinstance(part, Figures):
            found += part.figures
        elif isinstance(part, Fold):
            found += _figures(part.parts)
    return found
