"""Show the result of `rlhfctl reproduce gao`: the fits of each proxy, the ensembles, and the statements that held.

Pure drawing, for a terminal of 80 columns or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlhfctl.stats.scaling import Form, over_seeds
from rlhfctl.tools.reproduce.curves import Curve, Seed
from rlhfctl.tools.reproduce.experiment import Sizes
from rlhfctl.tools.reproduce.statements import Measure, Statement

OUTCOMES = {True: "held", False: "did not hold", None: "cannot tell"}
_STYLES = {True: "green", False: "red", None: "yellow"}
_FORMS: tuple[tuple[Form, str], ...] = (
    ("best_of_n", "best of n: gold = d (alpha - beta d)"),
    ("rl", "RL: gold = d (alpha - beta log d)"),
)
_NOTES = (
    "d: square root of the KL from the reference, in nats per response. Gold is in standard deviations of the "
    "reference's samples to one prompt. +-: half of the 95% interval over seeds (Student's t). A beta below 0 is a "
    "curve that bends upwards. R2: the lowest of the seeds; in brackets that of the other method's form. peak: the d "
    "at which the fitted curve is highest, the median of the seeds whose curve turns down within the points."
)


def view(seeds: Sequence[Seed], statements: Sequence[Statement]) -> Iterator[RenderableType]:
    """Draw the tables, then the statements, then which of them held."""
    yield Text(f"{len(seeds)} seeds: {', '.join(str(seed.seed) for seed in seeds)}", "bold")
    for rows in seeds[0].agreement:
        right = spread([seed.agreement[rows] for seed in seeds])
        yield Text(f"the proxy of {rows} pairs orders two samples as gold does: {right}")
    for form, title in _FORMS:
        yield Text(f"\n{title}", "bold")
        yield _fits(seeds, form)
    yield Text(_NOTES, "dim")
    yield Text(f"\nbest of n by {len(seeds[0].single)} reward models, gold", "bold")
    yield _ensembles(seeds)
    yield from draw_statements("statements of the papers", statements)


def draw_statements(title: str, statements: Sequence[Statement]) -> Iterator[RenderableType]:
    """Draw the statements, each with its outcome, then a line for each outcome with those that had it."""
    yield Text(f"\n{title}, judged by 95% intervals over seeds", "bold")
    for one in statements:
        yield _statement(one)
    yield Text()
    for outcome, said in OUTCOMES.items():
        names = [one.name for one in statements if one.held is outcome]
        yield Text(f"{said}: ", _STYLES[outcome]).append(", ".join(names) or "none", "default")


def to_json(seeds: Sequence[Seed], statements: Sequence[Statement], sizes: Sizes) -> dict[str, Any]:
    """Return the sizes, all points, fits and outcomes for scripts; intervals as [low, high]."""
    return {
        "sizes": asdict(sizes),
        "seeds": [asdict(seed) for seed in seeds],
        "statements": [statement_as_json(one) for one in statements],
    }


def statement_as_json(one: Statement) -> dict[str, Any]:
    """Return a statement, its measures and outcomes for scripts; intervals as [low, high]."""

    def measure(each: Measure) -> dict[str, Any]:
        return asdict(each) | {"ci95": [each.ci95.low, each.ci95.high]}

    return asdict(one) | {"measures": [measure(each) for each in one.measures]}


def _fits(seeds: Sequence[Seed], form: Form) -> Table:
    table = table_of("pairs", "alpha", "beta", "R2", "most gold", "peak")
    for rows in sorted(seeds[0].rl):
        curves: list[Curve] = [getattr(seed, form)[rows] for seed in seeds]
        own = min(curve.fit.r_squared for curve in curves)
        other = min(curve.other_fit.r_squared for curve in curves)
        table.add_row(
            str(rows),
            spread([curve.fit.alpha for curve in curves]),
            spread([curve.fit.beta for curve in curves]),
            f"{own:.2f} ({other:.2f})",
            spread([max(curve.gold) for curve in curves]),
            _peak(curves),
        )
    return table


def _peak(curves: Sequence[Curve]) -> str:
    """Write the median place of the fits' peaks that lie within the points, and how many seeds have one."""
    peaks = [peak for one in curves if (peak := one.fit.peak) is not None and peak <= one.distance[-1]]
    return f"{median(peaks):.2f} ({len(peaks)} of {len(curves)})" if peaks else f"none of {len(curves)}"


def _ensembles(seeds: Sequence[Seed]) -> Table:
    largest = seeds[0].ns[-1]
    table = table_of("chosen by", "at the best n", f"at n = {largest}", "fall")

    def row(name: str, number: Callable[[Seed, str], float]) -> None:
        table.add_row(name, *(spread([number(seed, what) for seed in seeds]) for what in ("best", "last", "fall")))

    numbers = {"best": lambda one: max(one.gold), "last": lambda one: one.gold[-1], "fall": lambda one: one.fall}
    row("one model", lambda seed, what: fmean(numbers[what](one) for one in seed.single))
    for name in seeds[0].ensembles:
        row(name, lambda seed, what, name=name: numbers[what](seed.ensembles[name]))  # type: ignore[misc]
    return table


def _statement(one: Statement) -> RenderableType:
    """Draw a statement with its outcome, and what it was judged by."""
    heading = Text(f"\n{one.name}: ", "bold").append(OUTCOMES[one.held], f"bold {_STYLES[one.held]}")
    table = Table.grid(padding=(0, 2, 0, 0))
    for right in (False, True, False, False):
        table.add_column(justify="right" if right else "left", no_wrap=len(table.columns) > 0)
    for measure in one.measures:
        number = f"{measure.value:.2f} [{measure.ci95.low:.2f}, {measure.ci95.high:.2f}]"
        table.add_row(measure.what, number, measure.asked, Text(OUTCOMES[measure.held], _STYLES[measure.held]))
    return Group(heading, Text(one.says), Padding(table, (0, 0, 0, 2)))


def table_of(*names: str) -> Table:
    """Make a plain table; all columns but the first are numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write the mean over seeds and half of its 95% interval."""
    mean, interval = over_seeds(values)
    return f"{mean:.{digits}f} +-{interval.high - mean:.{digits}f}"
