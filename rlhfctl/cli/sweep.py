"""The command `sweep`, which runs a grid of settings. Modules that load torch are imported inside the functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhfctl.cli.options import (
    PROCESSES,
    Launched,
    RecipeArgument,
    SetOption,
    launching,
)
from rlhfctl.errors import SweepFailed

if TYPE_CHECKING:
    from rlhfctl.sweeping import Sweep


@launching(PROCESSES)
def sweep(
    recipe: RecipeArgument,
    grid: Annotated[
        list[str], typer.Argument(metavar="KEY=A,B,...", help="A key and its values; seed=0,1,2 repeats each setting.")
    ],
    overrides: SetOption = [],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="The sweep's folder (default: runs/NAME-sweep).")
    ] = None,
    kl_limit: Annotated[
        float | None,
        typer.Option(metavar="NATS", min=0, help="Choose the best setting among those with at most this KL."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and what they share; run nothing.")] = False,
    *,
    launched: Launched,
) -> None:
    """A grid of settings: one run per combination, equal stages shared, one report. The same command resumes."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools import sweep as sweeps

    asked, planned = sweeps.plan(recipe, grid, overrides, launched.overrides, kl_limit)
    folder = run_dir or Path("runs") / f"{asked.name}-sweep"
    sweeps.require_free(folder)
    if dry_run:
        table, sentences = sweeps.forecast(planned, folder)
        console().print(table)
        for sentence in sentences:
            typer.echo(sentence)
        return
    from rlhfctl.dashboard.terminal.run_view import open_listeners

    with (
        sweeps.lock_of(folder),
        fs.report_full_disk(folder),
        open_listeners(sweeps.events_of(folder)) as emit,
        fs.report_full_disk(folder),
    ):
        done = sweeps.run(asked, planned, folder, emit)
    _say_what_came_of_it(folder)
    _require_all(done, folder)


def _say_what_came_of_it(folder: Path) -> None:
    """Print the result in a few lines, and write the report. A report that fails is only a warning."""
    from rlhfctl.dashboard.text import one_line
    from rlhfctl.report.write import sweep_at_end

    try:
        sentences, file = sweep_at_end(folder)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the report, the runs stand
        said = one_line(f"{type(error).__name__}: {error}")
        typer.echo(f"warning: the report could not be written ({said}); again: rlhfctl report {folder}", err=True)
        return
    for sentence in sentences:
        typer.echo(sentence)
    typer.echo(f"sweep: {folder}   (rlhfctl show {folder})")
    typer.echo(f"report: {file}")


def _require_all(sweep: Sweep, folder: Path) -> None:
    """Raise SweepFailed if a combination failed."""
    failed = [one for one in sweep.combinations if one.error is not None]
    if failed:
        listed = "".join(f"\n  - {one.folder}: {str(one.error).replace(chr(10), chr(10) + '    ')}" for one in failed)
        raise SweepFailed(
            f"{len(failed)} of {len(sweep.combinations)} combinations failed:{listed}",
            where=str(folder),
            fix="mend the cause; the same command tries these again and skips what is complete",
        )
