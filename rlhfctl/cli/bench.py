"""Commands that measure speed and memory: `bench ppo`. Modules that load torch are imported inside the functions."""

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
        Literal["adapter", "head", "model"] | None,
        typer.Option(help="Kind of this engine's critic (default: the recipe's, else adapter)."),
    ] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates measured in each round, after one more.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the engines take turns.")] = 2,
    workload: Annotated[
        Literal["small", "large"], typer.Option(help="Without a recipe: small for speed, large for memory.")
    ] = "small",
    report: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")] = None,
) -> None:
    """Speed and memory of PPO on this machine, measured in separate processes."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools.bench.bench import measured
    from rlhfctl.tools.bench.view import table
    from rlhfctl.tools.bench.workload import recipe_workload, reference_workload

    work = reference_workload(workload) if recipe is None else recipe_workload(recipe)
    found = measured(work, against=against, critic=critic, updates=updates, rounds=rounds, say=typer.echo)
    console().print(table(found))
    if report is not None:
        fs.write_json(report, found)
