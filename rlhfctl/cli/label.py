"""The commands of the group `label`: ask people, tell how their labels are, export and import labels.

`rlhfctl label RUN_OR_FILE` is short for `rlhfctl label ask RUN_OR_FILE`. Modules that load libraries are imported
inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from rlhfctl.cli.options import RunArgument, complete_run

TargetArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_FILE",
        help="A run, a labelling set, or a file of pairs to judge anew.",
        autocompletion=complete_run,
    ),
]


_OF_WRITE = ("turns", "count", "to", "stage", "temperature", "seed")  # options that --write alone reads
_MOST_SUGGESTIONS = 15  # with an own answer they make an item, which has 16 responses at most


class AsksByDefault(TyperGroup):
    """A group whose first command may be left out: what is no command's name is what to label."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


def sample(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The labelling set to write; it must not exist.")],
    responses: Annotated[int, typer.Option("--n", min=2, max=16, help="Different responses per prompt.")] = 2,
    models: Annotated[
        list[str],
        typer.Option("--from", metavar="MODEL", help="Who writes: a stage, reference, another run; repeatable."),
    ] = [],
    prompts: Annotated[int | None, typer.Option(min=1, help="How many prompts (default: all).")] = None,
    split: Annotated[Literal["train", "eval", "test"], typer.Option(help="Which of the run's prompts.")] = "train",
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Sampling temperature (default: PPO's).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of sampling (default: the recipe's).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses sampled at once.")] = 64,
) -> None:
    """Let a run's models write responses to its prompts, as a labelling set for people; resumes after a kill."""
    from rlhfctl.dashboard.terminal.progress import progress_bar
    from rlhfctl.tools import sample as sampling

    wanted = sampling.Wanted(responses, prompts, split, temperature, seed, batch_size)
    with progress_bar() as listen:
        sampling.sample(run, out, models, wanted, typer.echo, listen)


def ask(
    ctx: typer.Context,
    what: TargetArgument,
    web: Annotated[bool, typer.Option("--web", help="In browsers, for several people at once.")] = False,
    annotator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Your name in the terminal (default: the user's).")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the questions that several people judge.")
    ] = None,
    annotators: Annotated[int | None, typer.Option(min=2, help="How many people judge each of these.")] = None,
    gold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the questions that have a known answer.")
    ] = None,
    gold_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Pairs whose better response is known: gold questions.")
    ] = None,
    order: Annotated[
        Literal["file", "random", "active"] | None,
        typer.Option(help="Order of the questions; active: those first on which reward models disagree."),
    ] = None,
    host: Annotated[str, typer.Option(help="With --web: the address to listen on; all others see it.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="With --web: the port (default: a free one).")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="With --web: certificate, for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="With --web: its private key.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show agreement, speed and bias instead of asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --stats: as JSON.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write both sides of conversations; the run's model suggests answers.")
    ] = False,
    turns: Annotated[
        int | None, typer.Option(min=1, help="With --write: turns after which a conversation ends (default: no limit).")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--n", min=1, max=_MOST_SUGGESTIONS, help="With --write: suggestions per turn (default: 2)."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --write: add them to this file (default: RUN/demonstrations.jsonl)."),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="With --write: the stage whose model suggests (default: the last policy)."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="With --write: sampling temperature (default: the recipe's).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --write: seed (default: the recipe's).")] = None,
) -> None:
    """Ask people which response is better, in the terminal or in browsers; each answer is saved at once."""
    from rlhfctl.tools import label

    _refuse_mixed(ctx, write=write)
    if write:
        from rlhfctl.tools.write.start import write as write_both_sides

        write_both_sides(
            what,
            annotator=annotator,
            turns=turns,
            count=count,
            to=to,
            stage=stage,
            temperature=temperature,
            seed=seed,
        )
        return

    if stats or as_json:
        _show(what, as_json=as_json)
        return
    label.label(
        what,
        annotator=annotator,
        web=web,
        host=host,
        port=port,
        tls=(tls_cert, tls_key),
        say=typer.echo,
        overlap=overlap,
        annotators=annotators,
        gold=gold,
        gold_from=gold_from,
        order=order,
    )


def _refuse_mixed(ctx: typer.Context, *, write: bool) -> None:
    """Raise BadParameter for an option that would do nothing: one of --write without it, or another one with it."""
    given = [one for one in ctx.command.params if _is_given(ctx, one.name or "")]
    names = {one.name: one.opts[0] for one in given if one.name not in ("what", "annotator", "write")}
    useless = [option for name, option in names.items() if (name in _OF_WRITE) is not write]
    if useless:
        way = "does nothing with --write" if write else "is for --write"
        raise typer.BadParameter(f"{useless[0]} {way}")


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _show(what: Path, *, as_json: bool) -> None:
    import json

    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.labels.store import open_labels
    from rlhfctl.tools import label, label_stats

    target = label.find(what)
    with open_labels(target.labels, create=False) as store:
        found = label_stats.statistics_of(*label.answered(target, store))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    screen = console()
    for part in label_stats.view(found):
        screen.print(part)


def export(
    what: TargetArgument,
    to: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; it must not exist.")],
    form: Annotated[
        Literal["pairs", "rankings", "label-studio", "argilla"],
        typer.Option("--format", help="pairs: TRL's format; rankings: one row per label, with all that is known."),
    ] = "pairs",
    combine: Annotated[
        Literal["all", "majority"], typer.Option(help="Each label as it is, or the vote of the annotators.")
    ] = "all",
) -> None:
    """Write labels as a file: preferences for TRL, rankings, Label Studio's or Argilla's format."""
    from rlhfctl.tools import label_files

    for line in label_files.export(what, to, form, combine):
        typer.echo(line)


def import_(
    what: TargetArgument,
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Labels of export, Label Studio, Argilla, or pairs.")],
    annotator: Annotated[
        str, typer.Option(metavar="NAME", help="The name for labels without an annotator.")
    ] = "imported",
) -> None:
    """Read labels from a file into those of a run or a labelling set."""
    from rlhfctl.tools import label_files

    for line in label_files.import_(what, source, annotator):
        typer.echo(line)
