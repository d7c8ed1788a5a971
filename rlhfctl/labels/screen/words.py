"""Write the texts of the terminal screen: header, keys, help, closing page, and models' text made harmless. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhfctl.dashboard.text import counted, duration, one_line, visible
from rlhfctl.data.types import Prompt
from rlhfctl.labels.desk import Progress
from rlhfctl.labels.screen.ranking import KEYS, Ranking
from rlhfctl.labels.texts import turns_of

Piece = tuple[str, str]
"""A text and its style in Textual's words; an empty style is plain."""

BOLD, FAINT = "bold", "italic"  # no colours: they carry no meaning here, and terminals without them lose nothing
_TAB = 4
_GAP = "  "


def pieces_of(content: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> list[Piece]:
    """Return a prompt or a response as pieces to draw: roles in bold, texts as they are, nothing to obey.

    Characters that a terminal would obey (escapes, direction marks) are spelled out. `tools`: their names come first.
    """
    found: list[Piece] = []
    if tools:
        found.append((f"tools: {', '.join(_name_of(tool) for tool in tools)}\n\n", FAINT))
    for number, turn in enumerate(turns_of(content)):
        found.append(("\n\n" if number else "", ""))
        found.append((f"{one_line(turn.role)}\n" if turn.role else "", BOLD))
        found.append(_text(turn.text))
    return [piece for piece in found if piece[0]]


def _text(text: str) -> Piece:
    if not text:
        return "(empty)", FAINT
    if not text.strip():
        return f"(only white space: {text[:100]!a})", FAINT
    return visible(text, newlines=True).expandtabs(_TAB), ""


def _name_of(tool: dict[str, Any]) -> str:
    function = tool.get("function", tool)
    return one_line(str(function.get("name", "?") if isinstance(function, dict) else function))


def header(progress: Progress) -> str:
    """Write how far the annotator is; a dash where nothing is known yet."""
    seconds = "-" if progress.seconds_left is None else duration(progress.seconds_left)
    agreement = f"{progress.same} of {progress.compared}" if progress.compared else "-"
    skipped = f" · {progress.skipped} skipped" if progress.skipped else ""
    return f"{progress.done} done · {progress.left} left{skipped} · time left {seconds} · agreement {agreement}"


def keys_of(count: int, *, wide: bool) -> list[tuple[str, str]]:
    """List the keys of a question with `count` responses, and what each does; 0: the closing page."""
    if not count:
        return [("u", "undo"), ("r", "look again"), ("?", "help"), ("q", "quit")]
    if count == 2:
        first, second = ("left", "right") if wide else ("upper", "lower")
        own = [("← 1", first), ("→ 2", second), ("t", "tie"), ("b", "both bad")]
    else:
        own = [(key_range(count), "next best"), ("=", "tie"), ("⌫", "take back"), ("enter", "send"), ("b", "all bad")]
    rest = [("s", "skip"), ("u", "undo"), ("n", "note"), ("?", "help"), ("q", "quit"), ("tab ↑ ↓", "scroll")]
    return own + rest


def footer(count: int, width: int, *, wide: bool) -> list[Piece]:
    """Return the keys as pieces, in lines of at most `width` columns; a line breaks between keys, never within one."""
    found: list[Piece] = []
    used = 0
    for key, what in keys_of(count, wide=wide):
        needs = len(key) + 1 + len(what)
        between = "" if not used else _GAP if used + len(_GAP) + needs <= width else "\n"
        used = needs if between != _GAP else used + len(_GAP) + needs
        found += [(between, ""), (key, BOLD), (f" {what}", "")]
    return [piece for piece in found if piece[0]]


def key_range(count: int) -> str:
    """Write the keys of the responses: `1-4`, or `1-9 a c-e`."""
    letters = KEYS[9:count]
    if len(letters) > 2:
        letters = f"a c-{letters[-1]}"
    return f"1-{min(count, 9)} {' '.join(letters) if len(letters) < 3 else letters}".strip()


def title(place: int, count: int, ranking: Ranking) -> str:
    """Write what stands on the frame of a response: its key, and its rank once it has one."""
    if count == 2:
        return ("1 ←", "2 →")[place]
    rank = ranking.rank_of(place)
    if rank is None:
        return KEYS[place]
    best = " (best)" if rank == 0 else ""
    return f"{KEYS[place]} · rank {rank + 1}{best}"


def so_far(ranking: Ranking) -> str:
    """Write the ranking so far, and which key comes next."""
    left = " ".join(KEYS[place] for place in ranking.left)
    if not ranking.groups:
        return f"Press the keys from best to worst: {left}"
    if not left:
        return f"{ranking}   enter sends it"
    if len(ranking.left) == 1:
        return f"{ranking}   left: {left}; enter puts it {'level' if ranking.tie else 'last'} and sends"
    return f"{ranking}   left: {left}"


def more_lines(above: int, below: int) -> str:
    """Write how many lines of a pane are out of sight; empty if none is."""
    parts = [f"↑ {above}" if above else "", f"↓ {below}" if below else ""]
    shown = " ".join(part for part in parts if part)
    return f"{shown} more" if shown else ""


def closing(progress: Progress, given: int, held: int, wanted: int) -> str:
    """Write the page that is shown when there is no question.

    `given`: labels of this sitting. `held`: questions on the screens of others. `wanted`: answers that the set needs.
    """
    if held:
        head = (
            f"No question for you now: {counted(held, 'question')} {'is' if held == 1 else 'are'} on the screens of "
            "other annotators.\n\nThis page looks again every few seconds, in case one comes back to you."
        )
    elif wanted:
        head = "There is nothing left for you.\n\nThe set still needs " + (
            f"{counted(wanted, 'answer')} from other annotators, or to what you skipped."
        )
    else:
        head = "All questions are answered. Thank you."
    lines = [
        head,
        "",
        f"{given:>7}  labels given in this sitting",
        f"{progress.done:>7}  answered by you in all",
        f"{progress.skipped:>7}  skipped by you",
    ]
    if progress.compared:
        lines.append(f"{progress.same:>7}  of {progress.compared} answers that can be compared equal another's")
    return "\n".join([*lines, "", "All of this is saved. q quits, u takes your last answer back."])


def help_text(count: int, *, wide: bool) -> str:
    """Write the help for a question with `count` responses; 0: the closing page."""
    first, second = ("left", "right") if wide else ("upper", "lower")
    if count == 2:
        own = [
            ("1 or ←, 2 or →", f"the {first} response is better, the {second} one is better"),
            ("t", "tie: both are equally good"),
            ("b", "both are bad"),
        ]
    elif count:
        own = [
            (key_range(count), "rank the responses: press their keys from best to worst"),
            ("= or t", "the next one is as good as the one before: 2 = 1 3 4"),
            ("backspace", "take the last key back"),
            ("enter", "send the ranking; one response that is left comes last"),
            ("b", "all are bad"),
        ]
    else:
        own = [("r", "look again whether there is a question")]
    rest = [
        ("s", "skip: you do not get this question again"),
        ("u", "undo: take your last answer back, and answer anew"),
        ("n", "write a note on this question"),
        ("tab, shift+tab", "go to the next text, to the one before"),
        ("↑ ↓ PgUp PgDn", "scroll the text that has the thick frame"),
        ("q", "quit; all answers are saved, the same command goes on"),
    ]
    lines = [f"{keys:<15} {what}" for keys, what in own + rest]
    return "\n".join(
        [
            *lines,
            "",
            "An answer is on disk when `saved` is shown.",
            "Time left is at your own speed. Agreement counts your answers",
            "that equal another annotator's to the same question.",
        ]
    )
