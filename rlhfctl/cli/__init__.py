"""The command line: the Typer app and its commands, in the order of `rlhfctl --help`.

Each command is a thin function in a file of this folder. These files import light modules only, so that `--help`
answers at once; a module that loads torch is imported inside the command that needs it. Errors become exit codes in
__main__.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import rlhfctl
from rlhfctl.cli import bench, chat, check, course, label, look, make, reproduce, run, sweep, tokens

Commands = tuple[tuple[str, Callable[..., None], str], ...]

COMMANDS: Commands = (
    ("run", run.run, "rlhfctl run quickstart --set ppo.kl_coef=0.1"),
    ("sft", run.sft, "rlhfctl sft quickstart --set sft.trainer.num_train_epochs=1"),
    ("reward", run.reward, "rlhfctl reward quickstart --policy runs/quickstart/sft"),
    ("ppo", run.ppo, "rlhfctl ppo quickstart --reward-model runs/quickstart/reward"),
    ("compare", run.compare, "rlhfctl compare quickstart   or   rlhfctl compare runs/a runs/b"),
    ("sweep", sweep.sweep, "rlhfctl sweep quickstart ppo.kl_coef=0.02,0.1,0.5 seed=0,1,2 --kl-limit 20"),
    ("validate", check.validate, "rlhfctl validate recipes/quickstart.yaml --deep"),
    ("plan", check.plan, "rlhfctl plan quickstart   or   rlhfctl plan mine.yaml --memory 24"),
    ("data", check.data, "rlhfctl data my-recipe.yaml"),
    ("show", look.show, "rlhfctl show runs/quickstart"),
    ("runs", look.runs, "rlhfctl runs   or   rlhfctl runs /data/runs"),
    ("rank", look.rank, "rlhfctl rank runs/a runs/b runs/c --judge gold"),
    ("watch", look.watch, "rlhfctl watch runs/quickstart"),
    ("report", look.report, "rlhfctl report runs/quickstart   or   rlhfctl report runs/a runs/b --out runs.html"),
    ("tokens", tokens.tokens, "rlhfctl tokens runs/quickstart --update 10 --explain"),
    ("chat", chat.chat, "rlhfctl chat runs/quickstart --against reference"),
    ("sample", label.sample, "rlhfctl sample runs/quickstart --n 4 --prompts 100 --out set.jsonl"),
    ("export", make.export, "rlhfctl export runs/quickstart --stage ppo --to my-policy"),
    ("verify", look.verify, "rlhfctl verify runs/quickstart   or   rlhfctl verify runs/quickstart --json"),
    ("score", look.score, "rlhfctl score runs/quickstart pairs.jsonl --out scored.jsonl"),
    ("reward-eval", look.reward_eval, "rlhfctl reward-eval runs/quickstart --samples 128"),
    ("init", make.init, "rlhfctl init support.yaml   or   rlhfctl init --yes"),
    (
        "import",
        make.import_,
        "rlhfctl import train_ppo.sh --out mine.yaml   or   rlhfctl import sft.yaml rm.yaml ppo.yaml",
    ),
    ("schema", make.schema, "rlhfctl schema --out recipe.schema.json"),
    ("doctor", check.doctor, "rlhfctl doctor --json"),
)
"""Name, function and example of each command."""

BENCHES: Commands = (
    ("ppo", bench.ppo, "rlhfctl bench ppo --against trl --updates 3 --json bench.json"),
    ("scale", bench.scale, "rlhfctl bench scale --axes rows --rows 10000,100000,1000000"),
)

REPRODUCTIONS: Commands = (
    ("gao", reproduce.gao, "rlhfctl reproduce gao --seeds 0,1,2,3,4 --json gao.json"),
    ("coste", reproduce.coste, "rlhfctl reproduce coste --seeds 0,1,2,3,4 --json coste.json"),
    ("christiano", reproduce.christiano, "rlhfctl reproduce christiano --seeds 0,1,2,3,4 --json christiano.json"),
    ("rloo", reproduce.rloo, "rlhfctl reproduce rloo --seeds 0,1,2,3,4 --json rloo.json"),
)

LABELS: Commands = (
    ("ask", label.ask, "rlhfctl label runs/quickstart   or   rlhfctl label pairs.csv --web"),
    ("export", label.export, "rlhfctl label export runs/quickstart --to pairs.jsonl"),
    ("import", label.import_, "rlhfctl label import runs/quickstart from-label-studio.json"),
)

RECIPES: Commands = (
    ("list", make.list_recipes, "rlhfctl recipes list"),
    ("show", make.show_recipe, "rlhfctl recipes show quickstart"),
    ("copy", make.copy_recipe, "rlhfctl recipes copy quickstart mine.yaml"),
)

COURSE: Commands = (
    ("list", course.list_exercises, "rlhfctl course list"),
    ("copy", course.copy_exercise, "rlhfctl course copy 3"),
    ("check", course.check_exercise, "rlhfctl course check 3 runs/course-3"),
)


def _with_commands(group: typer.Typer, commands: Commands) -> typer.Typer:
    """Add commands to a group, each with its example below its help."""
    for name, function, example in commands:
        group.command(name, epilog=f"Example: {example}")(function)
    return group


def _group(text: str, commands: Commands, **more: Any) -> typer.Typer:
    return _with_commands(typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None, **more), commands)


app = _with_commands(
    typer.Typer(
        help="One strict recipe file in; a model trained by RLHF, and an honest verdict on it, out.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=True,
    ),
    COMMANDS,
)
app.add_typer(
    _group("Ask people which response is better; export and import labels.", LABELS, cls=label.AsksByDefault),
    name="label",
)
app.add_typer(_group("Measure speed and memory on this machine.", BENCHES), name="bench")
app.add_typer(_group("Repeat published experiments in small, over seeds.", REPRODUCTIONS), name="reproduce")
app.add_typer(_group("The shipped recipes: list, show, copy to edit.", RECIPES), name="recipes")
app.add_typer(_group("A course: ten runs with planted faults, to find and to mend.", COURSE), name="course")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"rlhfctl {rlhfctl.__version__}")
        raise typer.Exit
