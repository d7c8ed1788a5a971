"""Show the result of `rlhfctl reproduce gao`: the fits of each proxy, and the statements that hold. Pure drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from rlhfctl.stats.scaling import over_seeds
from rlhfctl.tools.reproduce.curves import Seed
from rlhfctl.tools.reproduce.statements import Statement

_OUTCOMES = {True: "holds", False: "does not hold", None: "undecided"}


def view(seeds: Sequence[Seed], statements: Sequence[Statement]) -> Iterator[RenderableType]:
    """Draw the tables."""
    table = Table(title=f"fits of gold over {len(seeds)} seeds, with 95% intervals", title_justify="left")
    for name in ("proxy", "alpha", "beta", "R squared", "peak of d"):
        table.add_column(name, justify="left" if name == "proxy" else "right")
    for kind, said in (("best_of_n", "best of n"), ("rl", "RL")):
        for rows in sorted(seeds[0].rl):
            fits = [getattr(seed, kind)[rows].fit for seed in seeds]
            peaks = [fit.peak for fit in fits if fit.peak is not None]
            table.add_row(
                f"{said}, {rows} pairs",
                _with_interval([fit.alpha for fit in fits]),
                _with_interval([fit.beta for fit in fits]),
                f"{min(fit.r_squared for fit in fits):.2f} or more",
                f"{sorted(peaks)[len(peaks) // 2]:.2f}" if 2 * len(peaks) > len(fits) else "none",
            )
    yield table
    outcomes = Table(title="statements", title_justify="left", show_lines=True)
    for name in ("paper", "statement", "measured", "outcome"):
        outcomes.add_column(name)
    for one in statements:
        number = f"{one.value:.2f} [{one.ci95.low:.2f}, {one.ci95.high:.2f}]"
        outcomes.add_row(one.paper, one.says, f"{number}: {one.measure}", _OUTCOMES[one.holds])
    yield outcomes


def to_json(seeds: Sequence[Seed], statements: Sequence[Statement]) -> dict[str, Any]:
    """Return all points, fits and outcomes for scripts."""
    from dataclasses import asdict

    return {"seeds": [asdict(seed) for seed in seeds], "statements": [asdict(one) for one in statements]}


def _with_interval(values: Sequence[float]) -> str:
    mean, interval = over_seeds(values)
    return f"{mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
