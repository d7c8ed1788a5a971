"""Commands that measure: `bench ppo`, `bench scale`. Modules that load torch are imported inside the functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhfctl.cli.options import complete_recipe


def ppo(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Take model and ppo sizes of this recipe (none: --workload).",
            autocompletion=complete_recipe,
        ),
    ] = None,
    against: Annotated[
        Literal["trl"] | None, typer.Option(help="Another engine to measure in turn: TRL's PPOTrainer.")
    ] = None,
    critic: Annotated[
        Literal["adapter", "head", "reward", "model"] | None,
        typer.Option(help="Kind of this engine's critic (default: the recipe's, else adapter)."),
    ] = None,
    num_processes: Annotated[
        int, typer.Option(min=1, help="Processes of this engine; each takes its part of the batch and of the threads.")
    ] = 1,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Number format of both engines' weights (default: the recipe's, else float32)."),
    ] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates measured in each round, after one more.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the engines take turns.")] = 2,
    workload: Annotated[
        Literal["small", "large"], typer.Option(help="Without a recipe: small for speed, large for memory.")
    ] = "small",
    report: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")] = None,
) -> None:
    """Speed and memory of PPO on this machine, measured in separate processes."""
    from dataclasses import replace

    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools.bench.bench import measured
    from rlhfctl.tools.bench.view import table
    from rlhfctl.tools.bench.workload import recipe_workload, reference_workload

    work = reference_workload(workload) if recipe is None else recipe_workload(recipe)
    if dtype is not None:
        work = replace(work, model=work.model.model_copy(update={"dtype": dtype}))
    found = measured(
        work, against=against, critic=critic, updates=updates, rounds=rounds, processes=num_processes, say=typer.echo
    )
    console().print(table(found))
    if report is not None:
        fs.write_json(report, found)


def scale(
    axes: Annotated[
        str, typer.Option(metavar="AXES", help="What grows: some of model, batch, length, rows, with commas.")
    ] = "model,batch,length,rows",
    points: Annotated[int, typer.Option(min=2, help="Sizes of model, batch and length, each twice the last.")] = 3,
    rows: Annotated[
        str, typer.Option(metavar="COUNTS", help="Numbers of prompts, with commas, as 1000,1000000.")
    ] = "1000,10000,100000",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each measured process.")] = 1,
    report: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")] = None,
) -> None:
    """How time and memory grow with model, batch, response length and rows; names what grows faster than it must."""
    import sys

    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools.bench.scale import AXES, measured
    from rlhfctl.tools.bench.scale_view import lines, table

    named = _listed(axes)
    if unknown := [name for name in named if name not in AXES]:
        raise typer.BadParameter(f"{', '.join(unknown)}: one or more of {', '.join(AXES)}", param_hint="--axes")
    counts = _listed(rows)
    if len(counts) < 2 or not all(count.isdecimal() and int(count) >= 100 for count in counts):
        raise typer.BadParameter(f"{rows}: two or more numbers of at least 100", param_hint="--rows")
    found = measured(
        named, points=points, rows=sorted({int(count) for count in counts}), threads=threads, say=typer.echo
    )
    if sys.stdout.isatty():
        console().print(table(found))
    else:
        for line in lines(found):
            typer.echo(line)
    if report is not None:
        fs.write_json(report, found)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
