"""Draw a traced episode on a terminal: as a table, as text coloured by a number, and the explanation of one token.

Rows of dashboard/traces.py and steps of dashboard/explain.py in, rich renderables out; prints nothing itself. A table
that is wider than the terminal goes on below, with the tokens again. Without colours the text has marks below its
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl.dashboard.explain import Losses
from rlhfctl.dashboard.formulas import TOLERANCE, Step
from rlhfctl.dashboard.terminal.draw import Signs, fit, shown
from rlhfctl.dashboard.text import fixed, number, short, visible
from rlhfctl.dashboard.traces import Record, TokenRow

By = Literal["advantage", "kl"]

_GAP = 2  # cells between columns
_LONGEST_TOKEN = 16  # cells of a token in a table
_LEVELS = 3  # strengths of a colour or mark, on each side of 0
# Backgrounds of the levels, dark text on them: orange below 0, blue above, which the colour-blind can tell apart.
_BACKGROUNDS = {-3: "#e66100", -2: "#f0954d", -1: "#f8cba6", 1: "#bcd9f2", 2: "#7db4e6", 3: "#3d8bd4"}
_CLIPPED = "bold red"


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: list[Text]

    @property
    def width(self) -> int:
        return max(cell_len(self.heading), *(cell.cell_len for cell in self.cells))


# ---------------------------------------------------------------- the table


def heading(stage: str, record: Record, traced: int) -> Group:
    """Build the lines above an episode: which one it is, its prompt, its score, how it ended."""
    which = f"{stage}, update {record['update']}, episode {record['episode']} (traced: 0 to {traced - 1})"
    ended = "ended by itself" if record["ended"] else "was cut off"
    score = f"score {short(record['score'])}"
    if record["score"] != record["raw_score"]:
        score += f" (the reward gave {short(record['raw_score'])})"
    line = f"{len(record['ids'])} tokens; {ended}; {score}; KL {short(sum(record['kl']))} nats"
    return Group(Text(which, "bold"), _labelled("prompt", record["prompt"]), Text(line))


def _labelled(label: str, text: str) -> Text:
    return Text(f"{label} ", "dim").append(visible(text), "")


def table(rows: Sequence[TokenRow], width: int, signs: Signs) -> Group:
    """Build the table of an episode, in as many parts as the width needs, and what its columns mean."""
    first = [_positions(rows), _tokens(rows, signs)]
    parts: list[RenderableType] = []
    for columns in _packed(_number_columns(rows), width - sum(column.width + _GAP for column in first)):
        parts += [_table([*first, *columns]), Text()]
    return Group(*parts, Text(_legend(rows), "dim"))


def _legend(rows: Sequence[TokenRow]) -> str:
    words = [
        "log p, log q: log-probability under policy and reference",
        "KL: estimate in nats",
        "reward: -kl_coef x KL, and the score at the end",
    ]
    if rows[0].value is not None:
        words += [
            "V: the critic's value before the token",
            "delta: its one-step error",
            "return: what it is to predict",
        ]
    words += ["A: advantage, as the loss uses it", "ratio N: p(now) / p(when sampled) in PPO epoch N; *: clipped"]
    return "; ".join(words)


def _table(columns: Sequence[_Column]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column.heading, justify="left" if index == 1 else "right", no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*cells)
    return made


def _packed(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    """Group the columns so that each group fits into `room` cells; a group has at least one column."""
    groups: list[list[_Column]] = [[]]
    used = 0
    for column in columns:
        if groups[-1] and used + column.width > room:
            groups.append([])
            used = 0
        groups[-1].append(column)
        used += column.width + _GAP
    return groups


def _positions(rows: Sequence[TokenRow]) -> _Column:
    return _Column("t", [Text(str(row.position), "dim") for row in rows])


def _tokens(rows: Sequence[TokenRow], signs: Signs) -> _Column:
    return _Column("token", [_token(row, signs) for row in rows])


def _token(row: TokenRow, signs: Signs) -> Text:
    if row.token is None:
        return Text("(after the end)", "dim italic")
    text = shown(row.text, signs)
    spaced = text.replace(" ", "_" if signs.ascii else "\u00b7", len(text) - len(text.lstrip(" ")))
    return fit(Text(spaced), _LONGEST_TOKEN, signs)


def _number_columns(rows: Sequence[TokenRow]) -> list[_Column]:
    of_row: tuple[tuple[str, Callable[[TokenRow], float | None], bool], ...] = (
        ("log p", lambda row: row.logprob, False),
        ("log q", lambda row: row.reference_logprob, False),
        ("KL", lambda row: row.kl, False),
        ("reward", lambda row: row.reward, False),
        ("V", lambda row: row.value, False),
        ("delta", lambda row: row.delta, False),
        ("A", lambda row: row.advantage, True),
        ("return", lambda row: row.returned, False),
    )
    made = [
        _Column(name, [_number(read(row), signed=signed) for row in rows])
        for name, read, signed in of_row
        if any(read(row) is not None for row in rows)
    ]
    return made + [_ratios(rows, epoch) for epoch in range(len(rows[0].epochs))]


def _number(value: float | None, *, signed: bool = False) -> Text:
    if value is None:
        return Text("")
    return Text(fixed(value, 3, sign=signed), ("green" if value > 0 else "red" if value < 0 else "") if signed else "")


def _ratios(rows: Sequence[TokenRow], epoch: int) -> _Column:
    cells = []
    for row in rows:
        numbers = row.epochs[epoch]
        if numbers.ratio is None:
            cells.append(Text(""))
        else:
            mark, style = ("*", _CLIPPED) if numbers.clipped else (" ", "")
            cells.append(Text(fixed(numbers.ratio, 3) + mark, style))
    return _Column(f"ratio {epoch + 1} ", cells)


# ---------------------------------------------------------------- coloured text


def text(rows: Sequence[TokenRow], by: By, width: int, signs: Signs, *, colours: bool) -> Group:
    """Write the response with each token's background by its advantage or KL; without `colours`, with marks below."""
    values = [(row.advantage if by == "advantage" else row.kl) or 0.0 for row in rows if row.token is not None]
    words = [shown(row.text, signs) for row in rows if row.token is not None]
    most = max(map(abs, values), default=0.0)
    levels = [round(_LEVELS * value / most) if most else 0 for value in values]
    name = "advantage" if by == "advantage" else "KL"
    extent = f"{name} from {short(min(values, default=0.0))} to {short(max(values, default=0.0))}"
    if colours:
        lines = _coloured(words, levels, width)
        scale = Text(f"{extent}: ", "dim")
        for level in range(-_LEVELS, _LEVELS + 1):
            scale.append(f" {level / _LEVELS * most:.2g} ", _background(level))
        return Group(*lines, Text(), scale)
    note = f"{extent}; the marks are thirds of the largest, {short(most)}"
    return Group(*_marked(words, levels, width), Text(), Text(note))


def _background(level: int) -> str:
    return f"black on {_BACKGROUNDS[level]}" if level else ""


def _coloured(words: Sequence[str], levels: Sequence[int], width: int) -> list[Text]:
    lines, line = [], Text()
    for word, level in zip(words, levels, strict=True):
        if line.cell_len and line.cell_len + cell_len(word) > width:
            lines.append(line)
            line = Text()
        line.append(word, _background(level))
    return [*lines, line]


def _marked(words: Sequence[str], levels: Sequence[int], width: int) -> list[Text]:
    """Write lines of tokens, each with a line of marks below: +1 to +3, -1 to -3, nothing near 0."""
    lines: list[Text] = []
    above, below = "", ""
    for word, level in zip(words, levels, strict=True):
        mark = f"{level:+d}" if level else ""
        cells = max(cell_len(word), len(mark) + 1 if mark else 1)
        if above and cell_len(above) + cells > width:
            lines += [Text(above.rstrip()), Text(below.rstrip(), "dim")]
            above, below = "", ""
        indent = len(word) - len(word.lstrip(" "))  # the mark stands below the first letter
        above += word + " " * (cells - cell_len(word))
        below += (" " * min(indent, cells - len(mark)) + mark).ljust(cells)
    return [*lines, Text(above.rstrip()), Text(below.rstrip(), "dim")]


# ---------------------------------------------------------------- the explanation


def explanation(row: TokenRow, steps: Sequence[Step]) -> Group:
    """Write the formulas of one token, each with its numbers, its result, the recorded number and the source."""
    name = "the state after the end" if row.token is None else f"token {visible(row.text)!r}"
    parts: list[RenderableType] = [Text(f"position {row.position}: {name}", "bold")]
    for step in steps:
        parts += [Text(), Text(step.name, "bold cyan").append(f" = {step.formula}", "")]
        worked = "" if step.worked == number(step.value, 4) else f"{step.worked} = "
        result = Text(f"    = {worked}").append(number(step.value, 4), "bold")
        if step.recorded is not None:
            result.append(f"   ({_comparison(step)})", "green" if step.agrees else "bold red")
        parts += [result, *([Text(f"    {step.source}", "dim")] if step.source else [])]
    return Group(*parts)


def _comparison(step: Step) -> str:
    assert step.recorded is not None
    if not step.agrees:
        return f"{step.compared}: {number(step.recorded, 6)}, which differs"
    return "as recorded" if step.compared == "recorded" else f"the same {step.compared}"


def losses(found: Losses) -> Group:
    """Write the losses of the update, added up from its trace, beside those that training logged."""
    title = Text("the update's losses, added up from its trace", "bold")
    if not found.computed:
        why = (
            f"{found.traced} of {found.episodes} episodes are traced; all of them are needed: "
            f"ppo.trace_episodes: {found.episodes}"
            if found.traced < found.episodes
            else "an older version wrote this trace, without the number of each minibatch"
        )
        return Group(title, Text(f"cannot be added up: {why}", "dim"))
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "from the trace", "logged", ""):
        made.add_column(name)
    for name, value in found.computed.items():
        logged = found.logged.get(name)
        agrees = logged is not None and abs(value - logged) <= TOLERANCE
        word = "not logged" if logged is None else "the same" if agrees else "differs"
        written = "" if logged is None else number(logged, 6)
        made.add_row(name, number(value, 6), written, Text(word, "green" if agrees else "red"))
    return Group(title, made, Text(f"each optimizer step lowers {found.objective}", "dim"))


# ---------------------------------------------------------------- the list


def listing(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Build the table of traced updates: one row per update, with its episodes' mean score, KL and length."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("stage", no_wrap=True)
    for name in ("update", "episodes", "score", "KL", "length"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        means = (short(row[name]) for name in ("score", "kl", "length"))
        made.add_row(row["stage"], str(row["update"]), str(row["episodes"]), *means)
    return made
