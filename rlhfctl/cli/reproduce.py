"""Commands that repeat published experiments in small: `reproduce gao`, `coste`, `christiano`, `rloo`.

Modules that load torch are imported inside the functions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhfctl.errors import RlhfctlError


def gao(
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds, separated by commas.")] = "0,1,2,3,4",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the runs lie (default: runs/gao, runs/gao-small with --small)."),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Sizes that only try the command: minutes, and no result of interest.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all points, fits and outcomes here.")
    ] = None,
) -> None:
    """Reward over-optimization (Gao et al. 2022, Coste et al. 2023) on the built-in task: an hour or more; resumes."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.report.page import html_of
    from rlhfctl.report.reproduction import page_of_reproduction
    from rlhfctl.tools.reproduce import curves, experiment, statements, view

    chosen = _seeds(seeds)
    sizes = experiment.SMALL if small else experiment.Sizes()
    folder = folder or Path("runs/gao-small" if small else "runs/gao")
    with progress_bar() as emit:
        experiment.make(folder, chosen, sizes, emit, _say)
    found = [curves.read_seed(seed, folder / f"seed-{seed}", sizes) for seed in chosen]
    outcomes = statements.check(found)
    for part in view.view(found, outcomes):
        console().print(part)
    result = view.to_json(found, outcomes, sizes)
    if report is not None:
        fs.write_json(report, result)
    page = folder / "report.html"
    fs.write_atomic(page, html_of(page_of_reproduction(json.loads(json.dumps(result))), str(folder)))
    typer.echo(f"report: {page}")


def coste(
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds, separated by commas.")] = "0,1,2,3,4",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the runs lie (default: runs/coste, runs/coste-small with --small)."),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Sizes that only try the command: minutes, and no result of interest.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all evaluations and outcomes here.")
    ] = None,
) -> None:
    """PPO on ensembles of reward models (Coste et al. 2023) on the built-in task: minutes a seed; resumes."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.tools.reproduce import ensemble_outcomes, ensemble_view, ensembles

    chosen = _seeds(seeds)
    sizes = ensembles.SMALL if small else ensembles.Sizes()
    folder = folder or Path("runs/coste-small" if small else "runs/coste")
    with progress_bar() as emit:
        ensembles.make(folder, chosen, sizes, emit, _say)
    found = [ensemble_outcomes.read_seed(seed, folder / f"seed-{seed}", sizes) for seed in chosen]
    outcomes = ensemble_outcomes.check(found)
    for part in ensemble_view.view(found, outcomes):
        console().print(part)
    if report is not None:
        fs.write_json(report, ensemble_view.to_json(found, outcomes, sizes))


def christiano(
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds, separated by commas.")] = "0,1,2,3,4",
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the runs lie (default: runs/queries, runs/queries-small with --small)."
        ),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Sizes that only try the command: a minute, and no result of interest.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all accuracies and outcomes here.")
    ] = None,
) -> None:
    """Labels asked by active choice or at random (Christiano et al. 2017) on the built-in task: minutes; resumes."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.tools.reproduce import queries, query_outcomes, query_view

    chosen = _seeds(seeds)
    sizes = queries.SMALL if small else queries.Sizes()
    folder = folder or Path("runs/queries-small" if small else "runs/queries")
    with progress_bar() as emit:
        queries.make(folder, chosen, sizes, emit, _say)
    found = [query_outcomes.read_seed(seed, folder / f"seed-{seed}", sizes) for seed in chosen]
    outcomes = query_outcomes.check(found)
    for part in query_view.view(found, outcomes):
        console().print(part)
    if report is not None:
        fs.write_json(report, query_view.to_json(found, outcomes, sizes))


def rloo(
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds, separated by commas.")] = "0,1,2,3,4",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the runs lie (default: runs/rloo, runs/rloo-small with --small)."),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Sizes that only try the command: minutes, and no result of interest.")
    ] = False,
    choose: Annotated[
        bool,
        typer.Option(
            "--choose", help="Instead, try step sizes for each algorithm on a seed of its own, and show the best."
        ),
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all points, measures and outcomes here.")
    ] = None,
) -> None:
    """PPO, REINFORCE, RLOO, DPO and more (Ahmadian et al. 2024) on the built-in task: minutes per seed; resumes."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.report.page import html_of
    from rlhfctl.report.reproduction import page_of_algorithms
    from rlhfctl.tools.reproduce import algorithm_choice, algorithm_outcomes, algorithm_view, algorithms

    chosen = _seeds(seeds)
    sizes = algorithms.SMALL if small else algorithms.Sizes()
    folder = folder or Path("runs/rloo-small" if small else "runs/rloo")

    if choose:
        with progress_bar() as emit:
            tried = algorithm_choice.choose(folder, sizes, emit, _say)
        for part in algorithm_choice.view(tried):
            console().print(part)
        if report is not None:
            fs.write_json(report, algorithm_choice.to_json(tried, sizes))
        return
    with progress_bar() as emit:
        algorithms.make(folder, chosen, sizes, emit, _say)
    found = [algorithm_outcomes.read_seed(seed, folder / f"seed-{seed}", sizes) for seed in chosen]
    outcomes = algorithm_outcomes.check(found)
    for part in algorithm_view.view(found, outcomes, sizes):
        console().print(part)
    result = algorithm_view.to_json(found, outcomes, sizes)
    if report is not None:
        fs.write_json(report, result)
    page = folder / "report.html"
    fs.write_atomic(page, html_of(page_of_algorithms(json.loads(json.dumps(result))), str(folder)))
    typer.echo(f"report: {page}")


def _say(sentence: str) -> None:
    """Write a line to standard error; the progress bar, which has taken it over, moves below the line."""
    sys.stderr.write(f"{sentence}\n")


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise RlhfctlError(
            f"--seeds {text}: at least two different seeds are needed, for intervals", fix="--seeds 0,1,2"
        )
    return seeds
