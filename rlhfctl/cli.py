"""The command line: thin Typer commands. Errors become exit codes in __main__.py.

Imports light modules only; whatever loads torch is imported inside the command that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import rlhfctl
from rlhfctl.errors import RlhfctlError

if TYPE_CHECKING:
    from rlhfctl.graph import Request
    from rlhfctl.recipe.load import LoadedRecipe


app = typer.Typer(
    help="One strict recipe file in; a model trained by RLHF, and an honest verdict on it, out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _complete_recipe(incomplete: str) -> list[str]:
    from rlhfctl.tools import complete

    return complete.recipes(incomplete)


def _complete_shipped(incomplete: str) -> list[str]:
    from rlhfctl.tools import complete

    return complete.shipped(incomplete)


def _complete_run(incomplete: str) -> list[str]:
    from rlhfctl.tools import complete

    return complete.runs(incomplete)


def _complete_recipe_or_run(incomplete: str) -> list[str]:
    from rlhfctl.tools import complete

    return complete.recipes_or_runs(incomplete)


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file, or the name of a shipped one.", autocompletion=_complete_recipe
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=_complete_run)]
ShippedArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A shipped recipe's name.", autocompletion=_complete_shipped)
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
    str | None, typer.Option("--reference", metavar="MODEL", help="What the policy is compared with.")
]


bench = typer.Typer(help="Measure speed and memory on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")
recipes = typer.Typer(
    help="The shipped recipes: list, show, copy to edit.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(recipes, name="recipes")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"rlhfctl {rlhfctl.__version__}")
        raise typer.Exit


@app.command(epilog="Example: rlhfctl run quickstart --set ppo.kl_coef=0.1")
def run(
    recipe: RecipeArgument,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Begin here; stages before stay as they are.")
    ] = None,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    force: ForceOption = False,
) -> None:
    """The whole recipe: sft, reward, ppo, compare. The same command resumes after a kill."""
    from rlhfctl.graph import Request

    _execute(recipe, overrides, run_dir, Request(start=start, until=until, force=force))


@app.command(epilog="Example: rlhfctl sft quickstart --set sft.trainer.num_train_epochs=1")
def sft(
    recipe: RecipeArgument, overrides: SetOption = [], run_dir: RunDirOption = None, force: ForceOption = False
) -> None:
    """Supervised fine-tuning alone: demonstrations in, base* out."""
    from rlhfctl.graph import Request

    _execute(recipe, overrides, run_dir, Request(only="sft", force=force))


@app.command(epilog="Example: rlhfctl reward quickstart --policy runs/quickstart/sft")
def reward(
    recipe: RecipeArgument,
    policy: PolicyOption = None,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    force: ForceOption = False,
) -> None:
    """The reward model alone, on the run's sft stage or on --policy."""
    from rlhfctl.graph import Request

    _execute(recipe, overrides, run_dir, Request(only="reward", force=force, external=_given(base=policy)))


@app.command(epilog="Example: rlhfctl ppo quickstart --reward-model runs/quickstart/reward")
def ppo(
    recipe: RecipeArgument,
    policy: PolicyOption = None,
    reward_model: RewardOption = None,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    force: ForceOption = False,
) -> None:
    """PPO alone, from the run's sft and reward stages or from the models named."""
    from rlhfctl.graph import Request

    external = _given(base=policy, reward=reward_model)
    _execute(recipe, overrides, run_dir, Request(only="ppo", force=force, external=external))


@app.command(epilog="Example: rlhfctl compare quickstart   or   rlhfctl compare runs/a runs/b")
def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE | RUN...",
            help="A recipe to compare for, or finished runs to set side by side.",
            autocompletion=_complete_recipe_or_run,
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
    as_json: Annotated[bool, typer.Option("--json", help="Of RUN...: their compare.json, for scripts.")] = False,
) -> None:
    """The verdict: policy against reference on the test prompts."""
    from rlhfctl.graph import Request

    if all((Path(name) / "recipe.yaml").is_file() for name in what):
        from rlhfctl.dashboard.terminal.run_view import compared

        compared([Path(name) for name in what], as_json=as_json)
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
    external = _given(policy=policy, reference=reference, reward=reward_model)
    _execute(what[0], overrides, run_dir, Request(only="compare", force=force, external=external, options=options))


@app.command(epilog="Example: rlhfctl validate recipes/quickstart.yaml --deep")
def validate(
    recipe: RecipeArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also check trainer: options, data rows, functions and the engine.")
    ] = False,
    overrides: SetOption = [],
) -> None:
    """Check a recipe: every problem at once, with its line."""
    from rlhfctl.graph import require_sources, stages_of

    loaded = _load(recipe, overrides)
    with loaded.placing():
        require_sources(loaded.recipe)
    names = ", ".join(stages_of(loaded.recipe))
    if deep:
        from rlhfctl.tools.validate import check

        for line in check(loaded):
            typer.echo(line)
        typer.echo(f"{loaded.path}: valid, with its data and trainer options (stages: {names})")
    else:
        typer.echo(f"{loaded.path}: valid (stages: {names})")
        typer.echo(
            "not checked here: the options under trainer:, the data rows; `validate --deep` and `run` check them"
        )


@app.command(epilog="Example: rlhfctl plan quickstart   or   rlhfctl plan mine.yaml --memory 24")
def plan(
    recipe: RecipeArgument,
    overrides: SetOption = [],
    run_dir: RunDirOption = None,
    start: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Begin here.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="End after this stage.")] = None,
    force: ForceOption = False,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Ask for a device with this much memory instead of this one.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Run one step of each stage and go by what it took.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """What would run, with how many steps, and whether memory and disk suffice."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.graph import Request

    loaded = _load(recipe, overrides)  # a mistake is said before libraries load
    from rlhfctl.tools.planning import plan as plans

    found = plans.plan(
        lambda more: _load(recipe, [*overrides, *more]) if more else loaded,
        run_dir,
        Request(start=start, until=until, force=force),
        limit=None if memory is None else int(memory * 1e9),
        probe=probe,
        say=lambda sentence: typer.echo(sentence, err=True),
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        from rlhfctl.tools.planning.view import view

        console().print(view(found))


@app.command(name="data", epilog="Example: rlhfctl data my-recipe.yaml")
def data_(
    recipe: RecipeArgument,
    overrides: SetOption = [],
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers here.")] = None,
) -> None:
    """What the data hold, as the stages will read them: counts, token lengths, duplicates, leakage, examples."""
    from rlhfctl import fs
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools.data import describe, examine

    loaded = _load(recipe, overrides)
    with loaded.placing():
        report = examine(loaded.recipe)
    if as_json is not None:
        fs.write_json(as_json, report.to_json())
    screen = console()
    for part in describe(report, unicode=not screen.options.ascii_only):
        screen.print(part)


@app.command(epilog="Example: rlhfctl show runs/quickstart")
def show(
    run: RunArgument, as_json: Annotated[bool, typer.Option("--json", help="The manifests, for scripts.")] = False
) -> None:
    """A run's stages and metrics, and each artifact's lineage back to data and base model."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools.show import describe, to_json

    if as_json:
        typer.echo(json.dumps(to_json(run), indent=2, ensure_ascii=False))
        return
    for part in describe(run):
        console().print(part)


@app.command(epilog="Example: rlhfctl runs   or   rlhfctl runs /data/runs")
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


@app.command(epilog="Example: rlhfctl watch runs/quickstart")
def watch(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Go on when the run is over, until Ctrl-C.")] = False,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="ASCII characters only.")] = False,
) -> None:
    """A run as it goes, or went: stages, time left, metrics, a sample, alarms. From another terminal, too."""
    from rlhfctl.dashboard.terminal.watch import watch as show_run

    show_run(run, follow=follow, ascii_only=ascii_only)


@app.command(epilog="Example: rlhfctl export runs/quickstart --stage ppo --to my-policy")
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder that does not exist yet.")],
    stage: Annotated[str, typer.Option(help="sft, reward, ppo or critic.")] = "ppo",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The LoRA adapter and its base, instead of merged weights.")
    ] = False,
) -> None:
    """A stage's model as a plain Hugging Face folder."""
    from rlhfctl.tools.export import export as export_stage

    for line in export_stage(run, stage, to, adapter=adapter):
        typer.echo(line)


@app.command(epilog="Example: rlhfctl score runs/quickstart pairs.jsonl --out scored.jsonl")
def score(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run, or a reward model's folder or Hub id.", autocompletion=_complete_run
        ),
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
        typer.Option("--reads", help="With a classifier's folder: what it reads."),
    ] = None,
    bad_rows: Annotated[
        Literal["stop", "drop"], typer.Option("--bad-rows", help="Whether rows that cannot be scored stop it.")
    ] = "stop",
) -> None:
    """Scores of a file's responses by a run's reward, row by row, and for pairs how often it is right."""
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


@app.command(epilog="Example: rlhfctl init support.yaml   or   rlhfctl init --yes")
def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The recipe to write (default: NAME.yaml).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: the built-in task, all defaults.")] = False,
) -> None:
    """A few questions, and a commented recipe for your model and data."""
    from rlhfctl.tools import init as interview

    path, answers = interview.interview(file, _default_answer if yes else _ask)
    for line in interview.write(path, answers):
        typer.echo(line)


@app.command(epilog="Example: rlhfctl schema --out recipe.schema.json")
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here; an older one there is replaced.")
    ] = None,
    how: Annotated[
        Literal["json", "markdown"], typer.Option("--format", help="For editors, or a page for people.")
    ] = "json",
) -> None:
    """Every key of a recipe: as JSON Schema, for editors, or as a page."""
    from rlhfctl.tools import reference
    from rlhfctl.tools import schema as made

    text = made.text() if how == "json" else reference.page()
    if out is None:
        typer.echo(text, nl=False)
        return
    made.write(out, text, made.is_schema if how == "json" else reference.is_page)
    use = f"; a recipe names it in its first line: # yaml-language-server: $schema={out.name}" if how == "json" else ""
    typer.echo(f"wrote {out}{use}")


@app.command(epilog="Example: rlhfctl doctor --json")
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """What works on this machine, and what to do about the rest."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools import doctor as examination

    findings = examination.examine()
    if as_json:
        typer.echo(json.dumps(examination.as_json(findings), indent=2))
    else:
        console().print(examination.table(findings))
    if not examination.works(findings):
        raise typer.Exit(1)


@recipes.command("list", epilog="Example: rlhfctl recipes list")
def recipes_list() -> None:
    """Names, what each is for, its stages and its model."""
    from rlhfctl.dashboard.terminal.console import console
    from rlhfctl.tools import recipes as shipped

    console().print(shipped.listing())


@recipes.command("show", epilog="Example: rlhfctl recipes show quickstart")
def recipes_show(name: ShippedArgument) -> None:
    """A recipe as it stands in its file, comments included."""
    from rlhfctl.tools import recipes as shipped

    typer.echo(shipped.show(name), nl=False)


@recipes.command("copy", epilog="Example: rlhfctl recipes copy quickstart mine.yaml")
def recipes_copy(
    name: ShippedArgument,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Where to (default: NAME.yaml here).")] = None,
) -> None:
    """A copy to edit, with the files that the recipe names beside it."""
    from rlhfctl.tools import recipes as shipped

    for line in shipped.copy(name, file):
        typer.echo(line)


@bench.command("ppo", epilog="Example: rlhfctl bench ppo --against trl --updates 3 --json bench.json")
def bench_ppo(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Whose model and ppo sizes to take (none: --workload).",
            autocompletion=_complete_recipe,
        ),
    ] = None,
    against: Annotated[
        Literal["trl"] | None, typer.Option(help="Another engine to measure in turn: TRL's PPOTrainer.")
    ] = None,
    critic: Annotated[
        Literal["adapter", "head", "model"] | None,
        typer.Option(help="What this engine's critic is (default: the recipe's, else adapter)."),
    ] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates measured in each round, after one more.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the engines take turns.")] = 2,
    workload: Annotated[
        Literal["small", "large"], typer.Option(help="Without a recipe: small for speed, large for memory.")
    ] = "small",
    report: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")] = None,
) -> None:
    """Speed and memory of PPO on this machine, in processes of their own."""
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


# ---------------------------------------------------------------- shared by the commands


def _given(**named: str | None) -> dict[str, str]:
    return {role: value for role, value in named.items() if value is not None}


def _ask(question: str, default: str | None, check: Callable[[str], str]) -> str:
    """Ask until the answer is good."""

    def checked(text: str) -> str:
        try:
            return check(text.strip())
        except RlhfctlError as error:
            raise typer.BadParameter(str(error)) from error

    answer: str = typer.prompt(question, default=default, value_proc=checked)
    return answer


def _default_answer(question: str, default: str | None, check: Callable[[str], str]) -> str:
    assert default is not None, question
    return check(default)


def _load(recipe: str, overrides: list[str]) -> LoadedRecipe:
    from rlhfctl.recipe.load import find_recipe, load_recipe

    return load_recipe(find_recipe(recipe), overrides)


def _execute(recipe: str, overrides: list[str], run_dir: Path | None, request: Request) -> None:
    from rlhfctl import fs, pipeline
    from rlhfctl.dashboard.terminal.run_view import open_listeners, print_verdict
    from rlhfctl.paths import RunPaths
    from rlhfctl.tools.trackers import tracking

    loaded = _load(recipe, overrides)
    folder = run_dir or Path("runs") / loaded.recipe.name
    paths = RunPaths(folder)
    with (
        fs.RunLock(paths.lock),
        fs.naming_full_disk(folder),  # of events.jsonl
        open_listeners(paths.events) as emit,
        fs.naming_full_disk(folder),
        tracking(loaded.recipe.report_to, folder, loaded.recipe.name, emit) as tell,
    ):
        artifacts = pipeline.run(loaded, folder, request, tell)
    print_verdict(artifacts[-1])
    typer.echo(f"run: {folder}   (rlhfctl show {folder})")
