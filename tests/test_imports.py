"""Who may import whom, and that the command line answers without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fastest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rlhfctl"
HEAVY = {"accelerate", "datasets", "pandas", "peft", "pyarrow", "scipy", "tokenizers", "torch", "transformers", "trl"}
HUGGING_FACE = HEAVY - {"scipy", "pandas"} | {"safetensors", "jinja2", "huggingface_hub"}

# part of the package -> (our modules it may import beside errors and fs, other libraries beside the standard one)
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "fs": (set(), set()),
    "events": (set(), set()),
    "artifacts": (set(), {"pydantic"}),
    "recipe": ({"recipe"}, {"pydantic", "pydantic_core", "ruamel"}),
    "stats": (set(), {"numpy", "scipy"}),
    "verdict": ({"stats"}, set()),
    "dashboard": ({"events", "artifacts", "stats", "dashboard", "verdict"}, {"rich"}),
    "world": ({"world"}, {"numpy"}),
    "training": (
        {"recipe.schema", "recipe.words", "events", "training", "rewards", "world.reviews"},
        HUGGING_FACE | {"bitsandbytes", "numpy"},
    ),
    "rewards": ({"recipe.schema", "events", "training", "rewards"}, HUGGING_FACE),
    "stages": (
        {
            "recipe.schema",
            "training",
            "rewards",
            "artifacts",
            "events",
            "stats",
            "verdict",
            "stages",
            "stages.handoff",
            "stages.evaluation",
            "stages.answers",
            "stages.judges",
            "stages.controls",
            "world.gold",
        },
        HUGGING_FACE | {"numpy"},
    ),
    "pipeline": ({"recipe", "artifacts", "events", "stages"}, set()),
    "tools": (
        {
            "recipe",
            "artifacts",
            "events",
            "stages",
            "training",
            "rewards",
            "dashboard",
            "pipeline",
            "stats",
            "tools.bench",
            "tools.planning",
            "tools.doctor",
            "tools.trackers",
        },
        HUGGING_FACE | {"rich", "wandb", "trackio"},
    ),
    "cli": ({"", "__main__", "pipeline", "artifacts", "recipe", "dashboard", "tools", "events"}, {"typer", "click"}),
    "__main__": ({"cli", "dashboard.watch"}, set()),
    "__init__": (set(), set()),
}
GOLD_READERS = {"stages/judges.py", "stages/evaluation.py", "world/reviews.py"}


def imports_of(path: Path) -> set[str]:
    """Full dotted names of everything a file imports, at whatever depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_in_bounds(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    ours, theirs = ALLOWED[part]
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "rlhfctl":
            inner = name.removeprefix("rlhfctl").removeprefix(".")
            if inner in ("", "errors", "fs") or inner.split(".")[0] in ("errors", "fs"):
                continue
            inside = any(inner == allowed or inner.startswith(f"{allowed}.") for allowed in ours if allowed)
            parent_of_allowed = any(allowed.startswith(f"{inner}.") for allowed in ours)
            assert inside or parent_of_allowed, f"{part} must not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in theirs, f"{part} must not import {name}"


def test_stages_do_not_import_each_other() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        names = {name for name in imports_of(path) if name.startswith("rlhfctl.stages.context.")}
        allowed = (
            "rlhfctl.stages.context.handoff",
            "rlhfctl.stages.context.evaluation",
            "rlhfctl.stages.context.Context",
        )
        parts = ("answers", "judges", "controls")  # of compare
        allowed += tuple(f"rlhfctl.stages.{part}" for part in parts) if path.stem in ("compare", *parts) else ()
        assert all(name.startswith(allowed) for name in names), path.name


def test_only_evaluation_reads_gold() -> None:
    readers = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.startswith("rlhfctl.world.gold") or name == "rlhfctl.world.gold" for name in imports_of(path))
    }
    assert readers == GOLD_READERS


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


CALL = """
from rlhfctl.cli import app
try:
    app({arguments}, standalone_mode=False)
except SystemExit:
    pass
"""


LIGHT = ["--help", "run --help", "validate quickstart", "recipes list", "schema", "doctor", "runs"]


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_load_nothing_heavy(command: str) -> None:
    assert not loaded_by(CALL.format(arguments=command.split())) & HEAVY


@pytest.mark.parametrize("command", ["show", "watch"])
def test_reading_a_run_loads_nothing_heavy(command: str, tiny_run: Path) -> None:
    assert not loaded_by(CALL.format(arguments=[command, str(tiny_run)])) & HEAVY


def test_a_plain_watch_loads_nothing_of_the_command_line(tiny_run: Path) -> None:
    start = "from rlhfctl.__main__ import main\nsys.argv = {}\ntry:\n    main()\nexcept SystemExit:\n    pass"
    watch = ["rlhfctl", "watch", str(tiny_run)]
    assert not loaded_by(start.format(watch)) & {"typer", "click", "pydantic"}
    assert "typer" in loaded_by(start.format([*watch, "--ascii"]))


def test_help_is_quick() -> None:
    assert fastest("--help") < 0.4


def test_validate_is_quick() -> None:
    assert fastest("validate", "quickstart") < 1.0
