"""Draw lines of a screen: fit, wrap and pair texts by their width in cells, and draw charts of block characters.

Pure functions: text and numbers in, lines out, none wider than the given width. There are two sets of signs: Unicode,
and ASCII for other terminals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.style import StyleType
from rich.text import Text

from rlhfctl.dashboard.text import visible

VERDICT_STYLES = {"better": "bold green", "worse": "bold red", "undecided": "bold yellow", "mixed": "bold yellow"}
LONGEST = 4000  # characters read of one text, more than a screen shows
# Joiners and variation selectors are dropped, because terminals disagree on the width of combined characters.
_UNSTEADY = str.maketrans("", "", "\u200c\u200d\ufe0e\ufe0f")


@dataclass(frozen=True)
class Signs:
    """The characters for a stage's state, a direction, a rule, a bar, and the heights of a chart from low to high."""

    ascii: bool
    done: str
    now: str
    next: str
    skipped: str
    stopped: str
    link: str
    rule: str
    divider: str
    filled: str
    empty: str
    up: str
    down: str
    level: str
    heights: str  # one line high
    partial: str  # the top of a column of several lines, from low to full
    dots: str


UNICODE = Signs(
    ascii=False,
    done="✓",
    now="▸",
    next="·",
    skipped="=",
    stopped="✗",
    link=" ─ ",
    rule="─",
    divider=" │ ",
    filled="━",
    empty="─",
    up="↑",
    down="↓",
    level="→",
    heights="▁▂▃▄▅▆▇█",
    partial="▁▂▃▄▅▆▇█",
    dots="…",
)
ASCII = Signs(
    ascii=True,
    done="*",
    now=">",
    next=".",
    skipped="=",
    stopped="x",
    link=" - ",
    rule="-",
    divider=" | ",
    filled="#",
    empty=".",
    up="^",
    down="v",
    level="=",
    heights="_.-:=+*#",
    partial=".:|#",
    dots="..",
)


def signs_for(console: Console, environment: dict[str, str], *, ascii_only: bool = False) -> Signs:
    """Choose the signs that a terminal can show. The font of Linux's text console lacks most block characters."""
    if ascii_only or environment.get("RLHFCTL_ASCII") or environment.get("TERM") == "linux":
        return ASCII
    return ASCII if console.options.ascii_only else UNICODE


def shown(text: str, signs: Signs) -> str:
    """Write a text on one line with characters that the terminal can show. Control characters are spelled out."""
    text = visible(text.translate(_UNSTEADY))
    return text.encode("ascii", "backslashreplace").decode("ascii") if signs.ascii else text


def fit(line: Text, width: int, signs: Signs, *, pad: bool = False) -> Text:
    """Cut a line to `width` cells, with dots at the cut; `pad`: fill it up to exactly `width` cells."""
    if line.cell_len > width:
        dots = signs.dots if width > len(signs.dots) else ""
        line.truncate(max(0, width - len(dots)), overflow="crop")
        line.append(dots, "dim")
    if pad:
        line.pad_right(max(0, width - line.cell_len))
    return line


def wrap(text: str, width: int, most: int, signs: Signs) -> list[str]:
    """Wrap a prompt or response into at most `most` lines of at most `width` cells. Its line ends are kept."""
    lines: list[str] = []
    for line in text[:LONGEST].strip("\n").split("\n"):
        lines += _folded(shown(line.removesuffix("\r"), signs), width)
        if len(lines) > most:
            break
    if len(lines) <= most:
        return lines
    kept = lines[:most]
    if kept:
        last = Text(kept[-1])
        last.truncate(max(0, width - len(signs.dots)), overflow="crop")
        kept[-1] = (last.plain.rstrip() + signs.dots)[: max(0, width)]
    return kept


def _folded(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` cells, at spaces where that is possible."""
    width = max(1, width)
    if cell_len(text) <= width:
        return [text]
    lines, line, used = [], "", 0
    for word in text.split(" "):
        cells = cell_len(word)
        if line and used + 1 + cells <= width:
            line, used = f"{line} {word}", used + 1 + cells
            continue
        if line:
            lines.append(line)
        line, used = word, cells
        while used > width:  # a word longer than a line
            taken, rest = _split(line, width)
            if not rest:
                break
            lines.append(taken)
            line, used = rest, cell_len(rest)
    lines.append(line)
    return lines


def _split(word: str, width: int) -> tuple[str, str]:
    """Split a word into the longest beginning that fits `width` cells (at least one character) and the rest."""
    used = 0
    for index, char in enumerate(word):
        used += cell_len(char)
        if used > width and index:
            return word[:index], word[index:]
    return word, ""


def ends(left: Text, right: Text, width: int, signs: Signs) -> Text:
    """Put `left` at the left edge and `right` at the right one. Without room for both, `right` is left out."""
    if right.cell_len + 2 >= width:
        return fit(left, width, signs)
    fit(left, width - right.cell_len - 2, signs, pad=True)
    return left.append("  ").append_text(right)


def rule(title: Text, width: int, signs: Signs) -> Text:
    """Draw a rule with a title: `── title ─────────`."""
    line = Text(signs.rule * 2 + " ", "dim").append_text(title).append(" ")
    line.append(signs.rule * max(0, width - line.cell_len), "dim")
    return fit(line, width, signs)


def beside(left: Sequence[Text], right: Sequence[Text], width: int, signs: Signs) -> list[Text]:
    """Put two columns side by side, the left one `width` wide, with a line between them."""
    lines = []
    for index in range(max(len(left), len(right))):
        line = left[index].copy() if index < len(left) else Text()
        fit(line, width, signs, pad=True).append(signs.divider, "dim")
        lines.append(line.append_text(right[index]) if index < len(right) else line)
    return lines


def bar(share: float, width: int, signs: Signs, style: StyleType) -> Text:
    """Draw a progress bar of `width` cells."""
    filled = min(width, max(0, int(share * width))) if math.isfinite(share) else 0
    return Text(signs.filled * filled, style).append(signs.empty * (width - filled), "dim")


def chart(values: Sequence[float | None], extent: tuple[float, float], lines: int, signs: Signs) -> list[str]:
    """Draw values as columns of `lines` lines, top line first. Equal values fill half the height; None is a gap."""
    low, high = extent
    if lines == 1:
        steps = len(signs.heights)
        marks = (" " + signs.heights)[: steps + 1]
        return ["".join(marks[_height(value, low, high, steps)] for value in values)]
    steps = len(signs.partial)
    heights = [_height(value, low, high, lines * steps) for value in values]
    rows = []
    for line in reversed(range(lines)):
        tops = (min(steps, max(0, height - line * steps)) for height in heights)
        rows.append("".join(signs.partial[top - 1] if top else " " for top in tops))
    return rows


def _height(value: float | None, low: float, high: float, steps: int) -> int:
    """Scale a value to 1 ... `steps`; None gives 0."""
    if value is None:
        return 0
    if not high > low:
        return (steps + 1) // 2
    share = (value - low) / (high - low)  # inf / inf where the range overflows
    return min(steps, max(1, 1 + int(share * (steps - 1) + 0.5))) if math.isfinite(share) else 1
