"""The command that talks to a run's models: `chat`. Modules that load torch are imported inside the function."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from rlhfctl.cli.options import RunArgument


def chat(
    run: RunArgument,
    stage: Annotated[
        str | None, typer.Option(metavar="STAGE", help="The stage whose model answers (default: the last policy).")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A second model beside it: a stage, reference, another run, a folder."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; 0 is greedy (default: the recipe's).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of sampling (default: the recipe's).")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens (default: the recipe's).")
    ] = None,
    prompts: Annotated[
        Literal["text", "conversation"] | None,
        typer.Option(help="Whether texts or conversations are asked (default: as the run's data)."),
    ] = None,
) -> None:
    """Talk to a run's model in the terminal, beside another stage's if you like; label answers as preferences."""
    from rlhfctl.tools.chat.loop import talk

    talk(
        run,
        stage=stage,
        against=against,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
        prompts=prompts,
    )
