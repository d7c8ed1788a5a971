"""The command `tokens`: one traced response token by token.

Modules that load torch are imported inside the function.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from rlhfctl.cli.options import RunArgument
from rlhfctl.errors import RlhfctlError

_DEPTH = 3  # tokens of the tree that are shown: two dozen lines in a world of two letters
_GOES_WITH = {"--token": "--explain", "--by": "--as text", "--depth": "--tree"}


def tokens(
    run: RunArgument,
    update: Annotated[int | None, typer.Option("--update", metavar="N", help="Default: the last one traced.")] = None,
    episode: Annotated[
        int | None, typer.Option("--episode", metavar="K", help="Episode of its batch, from 0 (default: the first).")
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="A ppo stage's folder, such as seed-1/ppo.")
    ] = None,
    form: Annotated[
        Literal["table", "text"], typer.Option("--as", help="A table, or text coloured by advantage or KL.")
    ] = "table",
    by: Annotated[Literal["advantage", "kl"], typer.Option("--by", help="With --as text: the number shown.")] = (
        "advantage"
    ),
    explain: Annotated[
        bool, typer.Option("--explain", help="Each formula with one token's numbers in it, and where it stands.")
    ] = False,
    token: Annotated[
        int | None, typer.Option("--token", metavar="T", help="With --explain: its position (default: the last token).")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List what is traced.")] = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="In a small world: every response to the prompt, before and after training.")
    ] = False,
    depth: Annotated[
        int | None, typer.Option("--depth", metavar="N", min=1, help="With --tree: tokens shown (default: 3).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """One response token by token: log-probabilities, KL, reward, value, advantage, return, ratios, clipping."""
    from rlhfctl.dashboard.terminal import tokens as views
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.dashboard.terminal.draw import signs_for
    from rlhfctl.tools import tokens as finding

    _refuse_idle(
        {
            "--token": token is not None and not explain,
            "--by": by != "advantage" and form != "text",
            "--depth": depth is not None and not tree,
        }
    )
    screen = console()
    signs = signs_for(screen, dict(os.environ))
    if listed:
        rows = finding.list_traces(run, stage)
        _print_json(rows) if as_json else screen.print(views.listing(rows))
        return
    found = finding.find(run, stage, update, episode)
    if tree:
        from rlhfctl.dashboard.terminal.tree import tree_view
        from rlhfctl.tools.tree import grow

        grown = grow(found)
        _print_json(asdict(grown)) if as_json else screen.print(tree_view(grown, depth or _DEPTH, signs))
        return
    if as_json:
        _print_json(finding.to_json(found, token, with_explanation=explain))
        return
    screen.print(views.heading(found.stage, found.record, len(found.others)))
    screen.print()
    if explain:
        screen.print(views.explanation(*finding.explained(found, token)))
        screen.print()
        screen.print(views.losses(finding.losses(found)))
    elif form == "text":
        colours = screen.color_system is not None and not screen.no_color
        screen.print(views.text(found.rows, by, screen.width, signs, colours=colours))
    else:
        screen.print(views.table(found.rows, screen.width, signs))


def _refuse_idle(idle: Mapping[str, bool]) -> None:
    """Raise RlhfctlError for an option that would have no effect without another one."""
    for option, is_idle in idle.items():
        if is_idle:
            raise RlhfctlError(f"{option} has no effect alone", where="tokens", fix=f"add {_GOES_WITH[option]}")


def _print_json(found: object) -> None:
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
