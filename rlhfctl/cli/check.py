"""Commands that check before a run: `validate`, `plan`, `data`, `doctor`.

Modules that load torch are imported inside the functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlhfctl.cli.options import ForceOption, RecipeArgument, RunDirOption, SetOption, load


def validate(
    recipe: RecipeArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also check trainer: options, data rows, functions and the engine.")
    ] = False,
    overrides: SetOption = [],
) -> None:
    """Check a recipe: every problem at once, with its line."""
    from rlhfctl.graph import stages_of
    from rlhfctl.stage_order import require_sources

    loaded = load(recipe, overrides)
    with loaded.locating():
        require_sources(loaded.recipe)
    names = ", ".join(stages_of(loaded.recipe))
    if deep:
        from rlhfctl.tools.validate import check

        for line in check(loaded):
            typer.echo(line)
        typer.echo(f"{loaded.path}: valid, with its data and trainer options (stages: {names})")
    else:
        typer.echo(f"{loaded.path}: valid (stages: {names})")
        typer.echo(
            "not checked here: the options under trainer:, the data rows; `validate --deep` and `run` check them"
        )


def plan(
    recipe: RecipeArgument,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    start: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Begin with this stage.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="End after this stage.")] = None,
    force: ForceOption = False,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Ask for a device with this much memory instead of this one.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run one step of each stage and use the time and memory that it took.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Predict a run: which stages would run, with how many steps, and whether memory and disk suffice."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.graph import Request

    loaded = load(recipe, overrides)  # a mistake is reported before libraries load
    from rlhfctl.planning import plan as plans

    found = plans.plan(
        lambda more: load(recipe, [*overrides, *more]) if more else loaded,
        run_dir,
        Request(start=start, until=until, force=force),
        limit=None if memory is None else int(memory * 1e9),
        probe=probe,
        say=lambda sentence: typer.echo(sentence, err=True),
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        from rlhfctl.planning.view import view

        console().print(view(found))


def data(
    recipe: RecipeArgument,
    overrides: SetOption = [],
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers here.")] = None,
) -> None:
    """Inspect the data as the stages will read them: counts, token lengths, duplicates, leakage, examples."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools.data import describe, examine

    loaded = load(recipe, overrides)
    with loaded.locating():
        report = examine(loaded.recipe)
    if as_json is not None:
        fs.write_json(as_json, report.to_json())
    screen = console()
    for part in describe(report, unicode=not screen.options.ascii_only):
        screen.print(part)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Check what works on this machine, and say how to fix the rest."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools import doctor as examination

    findings = examination.examine()
    if as_json:
        typer.echo(json.dumps(examination.as_json(findings), indent=2))
    else:
        console().print(examination.table(findings))
    if not examination.works(findings):
        raise typer.Exit(1)
