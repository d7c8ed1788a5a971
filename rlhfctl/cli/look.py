"""Commands that look at runs: `show`, `runs`, `rank`, `watch`, `report`, `verify`, `score`, `reward-eval`.

Modules that load torch are imported inside the functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhfctl.cli.options import RunArgument, complete_run


def show(
    run: RunArgument, as_json: Annotated[bool, typer.Option("--json", help="The manifests, for scripts.")] = False
) -> None:
    """A run's stages and metrics, and each artifact's lineage back to data and base model."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.sweeping import is_sweep
    from rlhfctl.tools import show as one_run
    from rlhfctl.tools import sweep_view

    shown = sweep_view if is_sweep(run) else one_run
    if as_json:
        typer.echo(json.dumps(shown.to_json(run), indent=2, ensure_ascii=False))
        return
    for part in shown.describe(run):
        console().print(part)


def runs(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A folder of runs (default: runs).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """All runs, newest first: state, stages, result, size."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools import runs as listing

    none_yet = folder is None and not Path("runs").is_dir()
    folder = folder or Path("runs")
    found = [] if none_yet else listing.find(folder)
    if as_json:
        typer.echo(json.dumps([listing.to_json(run) for run in found], indent=2, ensure_ascii=False))
    elif found:
        console().print(listing.table(found))
    else:
        typer.echo(f"no runs in {folder}/; start one: rlhfctl run quickstart")


def rank(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Finished runs, compared on the same test prompts.", autocompletion=complete_run
        ),
    ],
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="NAME", help="The judge to rank by (default: the primary judge).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Rank the policies of several runs: who beats whom, strengths with intervals, corrected p-values."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.ranking import ranking_view
    from rlhfctl.sweeping import runs_in
    from rlhfctl.tools import rank as ranking

    found = ranking.rank([run for folder in runs for run in runs_in(folder)], judge)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console().print(ranking_view(found))


def watch(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Go on after the end of the run, until Ctrl-C.")] = False,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="ASCII characters only.")] = False,
) -> None:
    """Watch a run, live or afterwards: stages, time left, metrics, a sample, alarms. Works from another terminal."""
    from rlhfctl.dashboard.terminal.watch import watch as show_run

    show_run(run, follow=follow, ascii_only=ascii_only)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders: one, or several side by side.", autocompletion=complete_run
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write here. Default: RUN/report.html; md and json are printed."),
    ] = None,
    form: Annotated[
        Literal["html", "md", "json"], typer.Option("--format", help="A page, Markdown, or JSON for scripts.")
    ] = "html",
    png: Annotated[
        Path | None, typer.Option("--png", metavar="DIR", help="Write the main figures as pictures for slides instead.")
    ] = None,
) -> None:
    """One page on a run: is the model better, by how much, at what cost, why, and can I trust it."""
    from rlhfctl.report.write import report as write_report

    text, said = write_report(runs, out=out, form=form, pictures=png)
    typer.echo(text, nl=False)
    for line in said:
        typer.echo(line, err=bool(text))


def verify(run: RunArgument, as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Check a run again: every file, hash, parent and input, and the verdict's numbers from its samples."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.tools import verify as verification

    with progress_bar() as listen:
        found = verification.verify(run, listen)
    if as_json:
        typer.echo(json.dumps(verification.to_json(run, found), indent=2, ensure_ascii=False))
    else:
        for part in verification.view(found):
            console().print(part)
    verification.require_unchanged(run, found)


def score(
    what: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run, or a reward model's folder or Hub id.", autocompletion=complete_run),
    ],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Rows with prompt and response, messages, or chosen and rejected."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the rows here (default: standard output).")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Responses scored at a time.")] = 64,
    label: Annotated[
        str | None, typer.Option("--label", help="With a classifier's folder: the label whose log-odds are the score.")
    ] = None,
    reads: Annotated[
        Literal["text", "pair", "response"] | None,
        typer.Option("--reads", help="With a classifier's folder: the part of a row that it reads."),
    ] = None,
    bad_rows: Annotated[
        Literal["stop", "drop"], typer.Option("--bad-rows", help="Stop at rows that cannot be scored, or drop them.")
    ] = "stop",
) -> None:
    """Score a file's responses by a run's reward, row by row; for pairs, also report its accuracy."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.tools import score as scoring

    another = "name a new file with --out"
    if out is not None:
        fs.require_new(out, fix=another)
    with progress_bar() as emit:
        found = scoring.score(what, file, batch_size=batch_size, label=label, reads=reads, bad_rows=bad_rows, emit=emit)
    if out is None:
        typer.echo(scoring.text_of(found.rows), nl=False)
    else:
        fs.write_new(out, scoring.text_of(found.rows), fix=another)
    for line in [*found.summary, *([f"wrote {out}"] if out is not None else [])]:
        typer.echo(line, err=out is None)


def reward_eval(
    run: RunArgument,
    prompts: Annotated[
        int | None, typer.Option("--prompts", min=1, help="Eval prompts to sample (default: 64, or as the run has it).")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=2, max=256, help="Responses per prompt (default: 32, or as the run has it)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="card.json, for scripts.")] = False,
) -> None:
    """The reward model's card: accuracy, calibration, length, probes, best-of-n curves, and what is wrong with it."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.tools.reward_eval import evaluate, print_card

    with progress_bar() as listen:
        card = evaluate(run, prompts=prompts, samples=samples, listen=listen)
    if as_json:
        typer.echo(json.dumps(card, indent=2, ensure_ascii=False))
        return
    print_card(card, console())
