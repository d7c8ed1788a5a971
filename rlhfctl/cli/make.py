"""Commands that write files: `export`, `init`, `import`, `schema`, `recipes`.

Modules that load torch are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhfctl.cli.options import RunArgument, ShippedArgument
from rlhfctl.errors import RlhfctlError


def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder that does not exist yet.")],
    stage: Annotated[str, typer.Option(help="sft, reward, ppo or critic; of one seed: seed-1/ppo.")] = "ppo",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The LoRA adapter and its base, instead of merged weights.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="REPO_ID", help="Also upload the folder to this repository on the Hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push-to-hub: make the repository private.")
    ] = False,
) -> None:
    """A stage's model as a plain Hugging Face folder, with a model card."""
    if private and push_to_hub is None:
        raise RlhfctlError("--private is of a repository on the Hub", fix="give --push-to-hub REPO_ID too")
    from rlhfctl.tools.export import export as export_stage
    from rlhfctl.tools.hub import Push

    push = None if push_to_hub is None else Push(push_to_hub, private)
    for line in export_stage(run, stage, to, adapter=adapter, push=push):
        typer.echo(line)


def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The recipe to write (default: NAME.yaml).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: the built-in task, all defaults.")] = False,
) -> None:
    """Ask a few questions and write a commented recipe for your model and data."""
    from rlhfctl.tools import interview
    from rlhfctl.tools.init import write

    path, answers = interview.ask_questions(file, _default_answer if yes else _ask)
    for line in write(path, answers):
        typer.echo(line)


def import_(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Scripts with command lines, or YAML or JSON of arguments.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RECIPE", help="Write the recipe here (default: print it).")
    ] = None,
) -> None:
    """A recipe of another tool's configuration: TRL, LLaMA-Factory, OpenRLHF."""
    from rlhfctl.importing.recipe import recipe_from, write

    made = recipe_from(files, out.parent if out is not None else Path())
    if out is None:
        typer.echo(made.text, nl=False)
        for line in made.problems:
            typer.echo(f"to settle: {line}", err=True)
        return
    for line in write(made, out):
        typer.echo(line)


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here; an older one there is replaced.")
    ] = None,
    file_format: Annotated[
        Literal["json", "markdown"], typer.Option("--format", help="For editors, or a page for people.")
    ] = "json",
) -> None:
    """Every key of a recipe: as JSON Schema for editors, or as a page for people."""
    from rlhfctl.tools import reference
    from rlhfctl.tools import schema as made

    text = made.text() if file_format == "json" else reference.page()
    if out is None:
        typer.echo(text, nl=False)
        return
    made.write(out, text, made.is_schema if file_format == "json" else reference.is_page)
    use = f"; a recipe names it in its first line: # yaml-language-server: $schema={out.name}"
    typer.echo(f"wrote {out}{use if file_format == 'json' else ''}")


def list_recipes() -> None:
    """List the shipped recipes: name, purpose, stages and model."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools import recipes as shipped

    console().print(shipped.listing())


def show_recipe(name: ShippedArgument) -> None:
    """Print a shipped recipe, comments included."""
    from rlhfctl.tools import recipes as shipped

    typer.echo(shipped.show(name), nl=False)


def copy_recipe(
    name: ShippedArgument,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The copy (default: NAME.yaml here).")] = None,
) -> None:
    """Copy a shipped recipe to edit it, with the files that it names."""
    from rlhfctl.tools import recipes as shipped

    for line in shipped.copy(name, file):
        typer.echo(line)


def _ask(question: str, default: str | None, check: Callable[[str], str]) -> str:
    """Ask a question until the answer passes its check."""

    def checked(text: str) -> str:
        try:
            return check(text.strip())
        except RlhfctlError as error:
            raise typer.BadParameter(str(error)) from error

    answer: str = typer.prompt(question, default=default, value_proc=checked)
    return answer


def _default_answer(question: str, default: str | None, check: Callable[[str], str]) -> str:
    """Answer each question with its default, for `init --yes`."""
    assert default is not None, question
    return check(default)
