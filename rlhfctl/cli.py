"""The command line: thin Typer commands, and the one place where errors become exit codes.

Imports light modules only; whatever loads torch is imported inside the command that needs it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import rlhfctl
from rlhfctl.errors import RlhfctlError

if TYPE_CHECKING:
    from rlhfctl.artifacts import Artifact
    from rlhfctl.events import Event, FanOut, Listener
    from rlhfctl.pipeline import Request
    from rlhfctl.recipe.load import LoadedRecipe


_GO_ON = "the same command goes on from the last complete checkpoint"
_STOPPED_BY = {  # signal -> what to say of it
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "asked to end (SIGTERM)",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
}
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)  # what the system does not let us open
_SHOWN = 200  # characters of a path
_READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal


class Interrupted(RlhfctlError):
    """A signal while stages ran: Ctrl-C, a scheduler's request to end, the terminal closed."""

    def __init__(self, number: signal.Signals) -> None:
        self.exit_code = 128 + number  # what a shell reports for it
        super().__init__(f"stopped: {_STOPPED_BY[number]}", fix=_GO_ON)


class OutputClosed(RlhfctlError):
    """Nobody reads standard output any more: `rlhfctl run ... | head`."""

    exit_code = 128 + signal.SIGPIPE

    def __init__(self) -> None:
        super().__init__(
            "stopped: standard output was closed",
            fix=f"{_GO_ON}; to run unwatched, send its output to a file: > run.log",
        )


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


bench = typer.Typer(help="What this machine makes of the work.", no_args_is_help=True, rich_markup_mode=None)
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
    """The whole recipe: sft, reward, ppo, compare. The same command goes on after a kill."""
    from rlhfctl.pipeline import Request

    _execute(recipe, overrides, run_dir, Request(start=start, until=until, force=force))


@app.command(epilog="Example: rlhfctl sft quickstart --set sft.trainer.num_train_epochs=1")
def sft(
    recipe: RecipeArgument, overrides: SetOption = [], run_dir: RunDirOption = None, force: ForceOption = False
) -> None:
    """Supervised fine-tuning alone: demonstrations in, base* out."""
    from rlhfctl.pipeline import Request

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
    from rlhfctl.pipeline import Request

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
    from rlhfctl.pipeline import Request

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
) -> None:
    """The verdict: policy against reference on the test prompts."""
    from rlhfctl.pipeline import Request

    if all((Path(name) / "recipe.yaml").is_file() for name in what):
        _compare_runs([Path(name) for name in what])
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
    from rlhfctl.pipeline import stages_of

    loaded = _load(recipe, overrides)
    names = ", ".join(stages_of(loaded.recipe))
    if deep:
        from rlhfctl.tools.deep import check

        for line in check(loaded):
            typer.echo(line)
        typer.echo(f"{loaded.path}: valid, all through (stages: {names})")
    else:
        typer.echo(f"{loaded.path}: valid (stages: {names})")
        typer.echo(
            "not checked here: the options under trainer:, the data rows; `validate --deep` and `run` check them"
        )


@app.command(name="data", epilog="Example: rlhfctl data my-recipe.yaml")
def data_(
    recipe: RecipeArgument,
    overrides: SetOption = [],
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers here.")] = None,
) -> None:
    """What the data hold, as the stages will read them: counts, token lengths, duplicates, leakage, examples."""
    from rlhfctl import fs
    from rlhfctl.dashboard.console import console
    from rlhfctl.tools.data_report import describe, examine

    loaded = _load(recipe, overrides)
    with loaded.placing():
        report = examine(loaded.recipe)
    if as_json is not None:
        fs.write_json(as_json, report.to_json())
    screen = console()
    for part in describe(report, unicode=not screen.options.ascii_only):
        screen.print(part)


@app.command(epilog="Example: rlhfctl show runs/quickstart")
def show(run: RunArgument) -> None:
    """A run's stages and metrics, and each artifact's lineage back to data and base model."""
    from rlhfctl.dashboard.console import console
    from rlhfctl.tools.inspect import describe

    for part in describe(run):
        console().print(part)


@app.command(epilog="Example: rlhfctl runs   or   rlhfctl runs /data/runs")
def runs(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A folder of runs (default: runs).")] = None,
) -> None:
    """All runs, newest first: state, stages, result, size."""
    from rlhfctl.dashboard.console import console
    from rlhfctl.tools import runs as listing

    none_yet = folder is None and not Path("runs").is_dir()
    folder = folder or Path("runs")
    found = [] if none_yet else listing.find(folder)
    if found:
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
    from rlhfctl.dashboard.console import console
    from rlhfctl.dashboard.watch import watch as show_run

    show_run(run, console(), sys.stdout, follow=follow, ascii_only=ascii_only)


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
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here; an older schema there is replaced.")
    ] = None,
) -> None:
    """The JSON Schema of a recipe, for editors."""
    from rlhfctl.tools import schema as made

    if out is None:
        typer.echo(made.text(), nl=False)
    else:
        made.write(out)
        typer.echo(f"wrote {out}; a recipe names it in its first line: # yaml-language-server: $schema={out.name}")


@app.command(epilog="Example: rlhfctl doctor --json")
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """What works on this machine, and what to do about the rest."""
    from rlhfctl.dashboard.console import console
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
    from rlhfctl.dashboard.console import console
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
    from rlhfctl.dashboard.console import console
    from rlhfctl.tools import bench as measure

    work = measure.workload(workload) if recipe is None else measure.recipe_workload(recipe)
    found = measure.bench_ppo(work, against=against, critic=critic, updates=updates, rounds=rounds, say=typer.echo)
    console().print(measure.table(found))
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
    from rlhfctl.artifacts import RunPaths

    loaded = _load(recipe, overrides)
    folder = run_dir or Path("runs") / loaded.recipe.name
    paths = RunPaths(folder)
    with (
        fs.RunLock(paths.lock),
        fs.naming_full_disk(folder),  # of events.jsonl
        _stoppable() as stop,
        _listeners(paths.events, stop) as emit,
        fs.naming_full_disk(folder),
    ):
        artifacts = pipeline.run(loaded, folder, request, emit)
    _closing(artifacts, folder)


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Turn the signals that ask for an end into Interrupted. One that is ignored (nohup) stays ignored."""
    stop = _Stop()
    before = {
        number: signal.signal(number, stop.ask)
        for number in _STOPPED_BY
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield stop
    except KeyboardInterrupt:
        raise Interrupted(stop.asked or signal.SIGINT) from None
    except OSError as error:  # the terminal that went can take no last words
        if stop.asked is None or error.errno not in _READER_GONE:
            raise
        raise Interrupted(stop.asked) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """Which signal asked for an end. As a listener: stops at the next event where a library swallowed the first."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def ask(self, number: int, frame: object) -> None:
        self.asked = signal.Signals(number)
        raise KeyboardInterrupt

    def __call__(self, event: Event, /) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt


@contextmanager
def _listeners(events: Path, stop: _Stop) -> Iterator[FanOut]:
    """events.jsonl always; the screen on a terminal, plain lines elsewhere (a terminal that knows no more included)."""
    from rlhfctl.dashboard.console import console
    from rlhfctl.dashboard.jsonl import JsonlWriter
    from rlhfctl.dashboard.plain import PlainPrinter
    from rlhfctl.events import FanOut

    screen = console()
    with JsonlWriter(events) as writer:
        if screen.is_terminal and not screen.is_dumb_terminal:
            from rlhfctl.dashboard.live import LivePrinter
            from rlhfctl.dashboard.watch import history

            with LivePrinter(screen, history(events)) as live, _saying_why([writer, live], stop):
                yield FanOut([stop, writer, live])
        else:
            with _saying_why([writer], stop):
                yield FanOut([stop, writer, _heard(PlainPrinter(sys.stdout))])


def _heard(listener: Listener) -> Listener:
    """OutputClosed where nobody reads what the listener writes."""

    def tell(event: Event, /) -> None:
        try:
            listener(event)
        except OSError as error:
            if error.errno not in _READER_GONE:
                raise
            raise OutputClosed from error

    return tell


@contextmanager
def _saying_why(listeners: list[Listener], stop: _Stop) -> Iterator[None]:
    """Where stages are left by an exception, tell those who watch; the exception goes on."""
    from rlhfctl.events import RunStopped

    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            reason = f"{_STOPPED_BY[stop.asked or signal.SIGINT]}; {_GO_ON}"
        else:
            reason = str(error) if isinstance(error, RlhfctlError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # a full disk, say: the error itself is what counts
            for listener in listeners:
                listener(RunStopped(stage="run", reason=reason))
        raise


def _closing(artifacts: list[Artifact], folder: Path) -> None:
    from rlhfctl.dashboard.console import console
    from rlhfctl.dashboard.tables import comparison_table, samples_view

    screen = console()
    last = artifacts[-1]
    if last.has("compare"):
        rows = [json.loads(line) for line in last.part("samples").read_text(encoding="utf-8").splitlines()]
        screen.print(samples_view(_one_a_prompt(rows)))
        screen.print()
        screen.print(comparison_table(json.loads(last.part("compare").read_text(encoding="utf-8"))))
        screen.print()
    typer.echo(f"run: {folder}   (rlhfctl show {folder})")


def _one_a_prompt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["sample"] == 0]


def _compare_runs(runs: list[Path]) -> None:
    from rlhfctl.artifacts import load_artifact
    from rlhfctl.dashboard.console import console
    from rlhfctl.dashboard.tables import comparison_table, runs_table

    reports: list[tuple[Path, Mapping[str, Any], Artifact]] = []
    for path in runs:
        artifact = load_artifact(path / "compare")
        artifact.verify()
        reports.append((path, json.loads(artifact.part("compare").read_text(encoding="utf-8")), artifact))
    if len(reports) == 1:
        console().print(comparison_table(reports[0][1]))
        return
    rows = []
    for path, report, _ in reports:
        judge = report["judges"][report["primary_judge"]]
        keys = ("delta", "delta_ci95", "win_rate", "win_rate_ci95", "independent")
        rows.append(
            {
                "run": str(path),
                "verdict": report["verdict"],
                "primary_judge": report["primary_judge"],
                "kl": report["kl_mean"],
            }
            | {key: judge.get(key) for key in keys}
        )
    console().print(runs_table(rows))
    if len({artifact.manifest.inputs.get("data.prompts") for _, _, artifact in reports}) > 1:
        typer.echo("these runs were compared on different test prompts: their figures are not on one scale")


def main() -> None:
    """Entry point: one message and an exit code for what a user can cause; a traceback for our own defects.

    Typer itself reports misspelt commands and options (exit code 2).
    """
    try:
        app()
    except RlhfctlError as error:
        if isinstance(error, OutputClosed):  # what is left in its buffer must not fail once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with suppress(OSError):  # a terminal that was closed
            typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        from rlhfctl.fs import disk_full, is_disk_full

        if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
            said = RlhfctlError(
                f"{error.strerror}", where=str(error.filename)[:_SHOWN], fix="check path and permissions"
            )
        elif is_disk_full(error):
            said = disk_full(Path(getattr(error, "filename", None) or "."))
        else:  # a defect of ours: show where
            raise
        typer.echo(f"error: {said}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
