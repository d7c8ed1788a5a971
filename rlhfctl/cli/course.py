"""The commands of the group `course`: list the exercises, copy one, check a solution.

Modules that load torch are imported inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhfctl.cli.options import complete_recipe_or_run

NumberArgument = Annotated[int, typer.Argument(metavar="N", help="The exercise's number.")]


def list_exercises() -> None:
    """List the exercises: runs with planted faults, minutes each on a CPU."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools.course import exercises

    console().print(exercises.listing())


def copy_exercise(
    number: NumberArgument,
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Where to (default: course-N).")] = None,
) -> None:
    """Copy an exercise's recipe and files, to run it and to mend it."""
    from rlhfctl.tools.course import exercises

    for line in exercises.copy(number, folder):
        typer.echo(line)


def check_exercise(
    number: NumberArgument,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The mended run (exercise 7: or its recipe).", autocompletion=complete_recipe_or_run
        ),
    ],
) -> None:
    """Measure whether a mended run is right. Exit code 1 where it is not yet."""
    from rlhfctl.tools.course import exercises

    measures = exercises.check(number, path)
    for line in exercises.report(measures):
        typer.echo(line)
    if not all(one.passes for one in measures):
        raise typer.Exit(1)
