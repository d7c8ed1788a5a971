"""Commands that run stages: `run`, `sft`, `reward`, `ppo`, `compare`.

Modules that load torch are imported inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhfctl.cli.options import (
    MACHINES,
    NOT_LAUNCHED,
    ForceOption,
    Launched,
    PolicyOption,
    RecipeArgument,
    ReferenceOption,
    RewardOption,
    RunDirOption,
    SetOption,
    complete_recipe_or_run,
    launching,
    load,
)
from rlhfctl.errors import GateClosed, RlhfctlError

if TYPE_CHECKING:
    from rlhfctl.graph import Request
    from rlhfctl.recipe.schema import Launch


@launching(MACHINES)
def run(
    recipe: RecipeArgument,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Begin with this stage; stages before it stay as they are."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N | A,B,...", help="Run over several seeds: how many, or which (the recipe's `seeds`)."),
    ] = None,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    *,
    launched: Launched,
    force: ForceOption = False,
) -> None:
    """The whole recipe: sft, reward, ppo, compare. The same command resumes after a kill."""
    from rlhfctl.graph import Request

    if seeds is not None:
        overrides = [*overrides, f"seeds.values={f'[{seeds}]' if ',' in seeds else seeds}"]
    _execute(recipe, overrides, run_dir, Request(start=start, until=until, force=force), launched)


@launching(MACHINES)
def sft(
    recipe: RecipeArgument,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    *,
    launched: Launched,
    force: ForceOption = False,
) -> None:
    """Supervised fine-tuning alone: demonstrations in, base* out."""
    from rlhfctl.graph import Request

    _execute(recipe, overrides, run_dir, Request(only="sft", force=force), launched)


@launching(MACHINES)
def reward(
    recipe: RecipeArgument,
    policy: PolicyOption = None,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    *,
    launched: Launched,
    force: ForceOption = False,
) -> None:
    """The reward model alone, on the run's sft stage or on --policy."""
    from rlhfctl.graph import Request

    request = Request(only="reward", force=force, external=_models_by_role(base=policy))
    _execute(recipe, overrides, run_dir, request, launched)


@launching(MACHINES)
def ppo(
    recipe: RecipeArgument,
    policy: PolicyOption = None,
    reward_model: RewardOption = None,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    *,
    launched: Launched,
    force: ForceOption = False,
) -> None:
    """PPO alone, from the run's sft and reward stages or from the models named."""
    from rlhfctl.graph import Request

    external = _models_by_role(base=policy, reward=reward_model)
    _execute(recipe, overrides, run_dir, Request(only="ppo", force=force, external=external), launched)


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE | RUN...",
            help="A recipe to compare for, or finished runs to set side by side.",
            autocompletion=complete_recipe_or_run,
        ),
    ],
    policy: PolicyOption = None,
    reference: ReferenceOption = None,
    reward_model: RewardOption = None,
    policy_samples: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="Samples made elsewhere: rows of prompt, response.")
    ] = None,
    reference_samples: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="The reference's samples, likewise.")
    ] = None,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    force: ForceOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With RUN...: print their compare.json, for scripts.")
    ] = False,
) -> None:
    """The verdict: policy against reference on the test prompts."""
    from rlhfctl.graph import Request
    from rlhfctl.sweeping import runs_in

    folders = [run for name in what for run in runs_in(Path(name))]
    if folders and all((folder / "recipe.yaml").is_file() for folder in folders):
        from rlhfctl.dashboard.terminal.run_view import print_run_comparison

        print_run_comparison(folders, as_json=as_json)
        return
    if len(what) > 1:
        raise RlhfctlError("several arguments must all be run folders", fix="rlhfctl compare runs/a runs/b")
    if (policy_samples is None) != (reference_samples is None):
        raise RlhfctlError("--policy-samples and --reference-samples go together", fix="give both")
    options = (
        {"policy_samples": str(policy_samples), "reference_samples": str(reference_samples)} if policy_samples else {}
    )
    for path in (policy_samples, reference_samples):
        if path is not None and not path.is_file():
            raise RlhfctlError("the file of samples does not exist", where=str(path), fix="check the path")
    external = _models_by_role(policy=policy, reference=reference, reward=reward_model)
    _execute(what[0], overrides, run_dir, Request(only="compare", force=force, external=external, options=options))


def _execute(
    recipe: str, overrides: list[str], run_dir: Path | None, request: Request, launched: Launched = NOT_LAUNCHED
) -> None:
    """Run the stages of a request with all listeners to their events, then print the verdict.

    On a machine that is not the first one, work on the stages that the first machine starts instead.
    """
    from rlhfctl import fs, pipeline
    from rlhfctl.dashboard.terminal.run_view import open_listeners, print_verdict
    from rlhfctl.launching import launcher_of
    from rlhfctl.machines import leading
    from rlhfctl.paths import RunPaths
    from rlhfctl.tools.trackers import tracking

    loaded = load(recipe, [*overrides, *launched.overrides])
    folder = run_dir or Path("runs") / loaded.recipe.name
    launch = loaded.recipe.launch
    if launched.machine:
        _follow(launch, launched.machine, folder)
        return
    paths = RunPaths(folder)
    try:
        with (
            fs.RunLock(paths.lock),
            fs.report_full_disk(folder),  # of events.jsonl
            open_listeners(paths.events) as emit,
            fs.report_full_disk(folder),
            tracking(loaded.recipe.report_to, folder, loaded.recipe.name, emit) as emit_to_all,
            leading(launch, folder) as others,
        ):
            artifacts = pipeline.run(loaded, folder, request, emit_to_all, launcher_of(launch, others))
    except GateClosed:
        _write_report(folder)  # with the reward model's card: why PPO was not begun
        raise
    print_verdict(artifacts[-1])
    typer.echo(f"run: {folder}   (rlhfctl show {folder})")
    if request.only in (None, "compare"):
        _write_report(folder)


def _follow(launch: Launch | None, machine: int, folder: Path) -> None:
    """Work for the first machine of a run, as machine number `machine`."""
    from rlhfctl.machines import follow

    if launch is None or machine >= launch.num_machines:
        count = launch.num_machines if launch is not None else 1
        raise RlhfctlError(
            f"--machine-rank {machine}, but the recipe has {count} machine{'s' * (count > 1)}",
            fix="set --num-machines to the number of machines; their ranks begin with 0",
        )
    follow(launch, machine, folder, lambda sentence: typer.echo(sentence))


def _write_report(folder: Path) -> None:
    """Write the run's report and say where it is. A report that fails is only a warning: the run is finished."""
    from rlhfctl.dashboard.text import one_line
    from rlhfctl.report.write import report_at_end

    try:
        typer.echo(f"report: {report_at_end(folder)}")
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the report, the models and the verdict stand
        said = one_line(f"{type(error).__name__}: {error}")
        typer.echo(f"warning: the report could not be written ({said}); again: rlhfctl report {folder}", err=True)


def _models_by_role(**named: str | None) -> dict[str, str]:
    """Return the models that were named on the command line, by role."""
    return {role: value for role, value in named.items() if value is not None}
