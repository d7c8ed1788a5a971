"""Define the arguments and options that several commands share, and load their recipe.

Imports light modules only. The module that completes names is imported when a shell asks for completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlhfctl.recipe.load import LoadedRecipe


def complete_recipe(incomplete: str) -> list[str]:
    """Complete recipe files and names of shipped recipes in a shell."""
    from rlhfctl.tools import complete

    return complete.recipes(incomplete)


def complete_shipped(incomplete: str) -> list[str]:
    """Complete names of shipped recipes in a shell."""
    from rlhfctl.tools import complete

    return complete.shipped(incomplete)


def complete_run(incomplete: str) -> list[str]:
    """Complete run folders in a shell."""
    from rlhfctl.tools import complete

    return complete.runs(incomplete)


def complete_recipe_or_run(incomplete: str) -> list[str]:
    """Complete recipes and run folders in a shell."""
    from rlhfctl.tools import complete

    return complete.recipes_or_runs(incomplete)


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file, or the name of a shipped one.", autocompletion=complete_recipe
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)]
ShippedArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A shipped recipe's name.", autocompletion=complete_shipped)
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="A.B=C", help="Change one key of the recipe; repeatable.")
]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", metavar="DIR", help="Run folder (default: runs/NAME).")]
ForceOption = Annotated[bool, typer.Option("--force", help="Run again even what is unchanged; the old is kept aside.")]
PolicyOption = Annotated[
    str | None, typer.Option("--policy", metavar="MODEL", help="A run's stage, a model or adapter folder, or a Hub id.")
]
RewardOption = Annotated[
    str | None, typer.Option("--reward-model", metavar="MODEL", help="A reward model in place of the run's own.")
]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", metavar="MODEL", help="The model that the policy is compared with.")
]
PROCESSES: dict[str, Any] = {
    "num_processes": Annotated[
        int | None,
        typer.Option("--num-processes", metavar="N", min=1, help="Processes that share each training stage: launch."),
    ],
    "accelerate_config": Annotated[
        Path | None,
        typer.Option(
            "--accelerate-config", metavar="FILE", help="A file of `accelerate config`, for example with FSDP."
        ),
    ],
    "shard": Annotated[
        bool | None,
        typer.Option("--shard", help="Divide the weights over the processes that train (FSDP2): launch.shard."),
    ],
}
"""Options of a command whose stages several processes of this machine train: the keys of the recipe's `launch`."""
MACHINE_RANK = "machine_rank"
MACHINES: dict[str, Any] = {
    **PROCESSES,
    "num_machines": Annotated[
        int | None, typer.Option("--num-machines", metavar="N", min=1, help="Machines that share each training stage.")
    ],
    MACHINE_RANK: Annotated[
        int, typer.Option("--machine-rank", metavar="N", min=0, help="Number of this machine; 0 decides and publishes.")
    ],
    "main_process_ip": Annotated[
        str | None, typer.Option("--main-process-ip", metavar="ADDRESS", help="Address of the first machine.")
    ],
    "main_process_port": Annotated[
        int | None,
        typer.Option("--main-process-port", metavar="PORT", help="Port on which the first machine listens."),
    ],
}
"""Options of a command whose stages several machines train together."""


@dataclass(frozen=True)
class Launched:
    """What a command's options say of processes and machines: changes of the recipe, and this machine's number."""

    overrides: list[str] = field(default_factory=list)
    machine: int = 0


NOT_LAUNCHED = Launched()


def launching(options: dict[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options in place of its parameter `launched`, which gets what they amount to."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**given: Any) -> None:
            asked = {name: given.pop(name) for name in options}
            machine = asked.pop(MACHINE_RANK, 0)
            command(**given, launched=Launched(_overrides(asked), machine))

        parameters: list[Parameter] = []
        for one in signature(command, eval_str=True).parameters.values():
            if one.name == "launched":
                parameters += (
                    Parameter(
                        name, Parameter.KEYWORD_ONLY, default=0 if name == MACHINE_RANK else None, annotation=option
                    )
                    for name, option in options.items()
                )
            else:
                parameters.append(one.replace(kind=Parameter.KEYWORD_ONLY))
        wrapped.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what Typer reads
        return wrapped

    return wrap


def _overrides(given: dict[str, int | str | Path | None]) -> list[str]:
    """Return the changes of the recipe's `launch` that options ask for, by key."""
    values = {key: str(Path(value).resolve()) if isinstance(value, Path) else value for key, value in given.items()}
    return [f"launch.{key}={value}" for key, value in values.items() if value is not None]


def load(recipe: str, overrides: list[str]) -> LoadedRecipe:
    """Load a recipe file or a shipped recipe, with the changes of `--set`."""
    from rlhfctl.recipe.load import find_recipe, load_recipe

    return load_recipe(find_recipe(recipe), overrides)
