"""Hold every import to the table in docs/design.md, and see that the command line answers without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import fastest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rlhfctl"
HEAVY = {"accelerate", "datasets", "pandas", "peft", "pyarrow", "scipy", "tokenizers", "torch", "transformers", "trl"}
FOR_ALL = ("errors", "fs")


def layers() -> dict[str, tuple[tuple[str, ...], set[str]]]:
    """Part of the package -> (our parts that it may import, libraries beside the standard one)."""
    found = {}
    for line in (ROOT / "docs" / "design.md").read_text(encoding="utf-8").splitlines():
        if row := re.fullmatch(r"\| `(\w+)` \|([^|]*)\|([^|]*)\|", line):
            part, ours, theirs = (cell.strip() for cell in row.groups())
            found[part] = (tuple(ours.split(", ")) if ours else (), set(theirs.split(", ")) if theirs else set())
    return found


LAYERS = layers()
PARTS = {  # of a stage: its files beside the one of its name
    "compare": (
        "answers",
        "judges",
        "controls",
        "endpoint",
        "measures",
        "readings",
        "critic_sampling",
        "found_prompts",
        "prompted",
    ),
    "card": ("pool", "altered", "card_numbers", "card_scorers"),
    "sample": ("responses",),
    "ppo": ("outcomes", "ptx_rows", "prompted"),
    "reward": ("normalization", "reward_members"),
    "sft": ("choice", "heldout_loss"),
}
GOLD_READERS = {
    "stages/judges.py", "stages/evaluation.py", "stages/card_scorers.py", "stages/label.py", "world/reviews.py",
    "tools/reproduce/query_outcomes.py", "tools/reproduce/policies.py",
}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """Full dotted names of everything a file imports, at whatever depth, by statement or by string."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if re.fullmatch(r"rlhfctl(\.\w+)+", node.value) else set()
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            begin = str(node.values[0].value)  # f"rlhfctl.stages.{name}"
            found |= {begin.rstrip(".")} if re.fullmatch(r"rlhfctl(\.\w+)+\.", begin) else set()
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def part_of(module: str) -> str:
    """The row of the table that a module of ours belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def test_the_table_is_whole() -> None:
    assert set(LAYERS) == {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_in_bounds(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    ours, theirs = LAYERS[part]
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "rlhfctl":
            inner = name.removeprefix("rlhfctl").removeprefix(".")
            if inner.split(".")[0] in ("", part, *FOR_ALL):
                continue
            inside = any(inner == allowed or inner.startswith(f"{allowed}.") for allowed in ours)
            parent_of_allowed = any(allowed.startswith(f"{inner}.") for allowed in ours)
            assert inside or parent_of_allowed, f"{part} must not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in theirs, f"{part} must not import {name}"


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports."""
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        names = imports_of(path)
        found[module] = {name for name in names if name in MODULES and name != module}
        # `from rlhfctl.data import load` names the folder too, whose __init__ is empty.
        found[module] -= {name for name in found[module] if not MODULES[name].read_text(encoding="utf-8").strip()}
    return found


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes each of which reaches all others (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in number:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            found.append(group)

    for node in edges:
        if node not in number:
            visit(node)
    return [sorted(group) for group in found if len(group) > 1]


def test_files_do_not_import_in_a_circle() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert cycles(graph()) == []


def folder_of(module: str) -> str:
    """The folder of a file of ours; a file at the top of the package stands for itself."""
    path = MODULES[module].relative_to(PACKAGE)
    return str(path.parent) if len(path.parts) > 1 else path.stem


def test_folders_do_not_import_in_a_circle() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for module, others in graph().items():
        edges[folder_of(module)] |= {folder_of(other) for other in others} - {folder_of(module)}
    assert cycles(edges) == []


def test_imports_by_string_are_seen(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.py"
    hidden.write_text('load("rlhfctl.training.checkpoints")\nload(f"rlhfctl.stages.{name}")\n', encoding="utf-8")
    assert imports_of(hidden) == {"rlhfctl.training.checkpoints", "rlhfctl.stages"}


def test_stages_do_not_import_each_other() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        names = {name for name in imports_of(path) if name.startswith("rlhfctl.stages.")}
        allowed = (
            "rlhfctl.stages.loader",
            "rlhfctl.stages.probes",
            "rlhfctl.stages.evaluation",
            "rlhfctl.stages.context",
            "rlhfctl.stages.blocks",
            "rlhfctl.stages.policy_files",
        )
        for stage, parts in PARTS.items():
            allowed += tuple(f"rlhfctl.stages.{part}" for part in parts) if path.stem in (stage, *parts) else ()
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


LIGHT = ["--help", "run --help", "validate quickstart", "recipes list", "schema", "doctor", "runs", "course list"]


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_load_nothing_heavy(command: str) -> None:
    assert not loaded_by(CALL.format(arguments=command.split())) & HEAVY


def test_deciding_what_to_run_loads_nothing_heavy() -> None:
    assert (
        not loaded_by("import rlhfctl.pipeline, rlhfctl.stage_process, rlhfctl.tools.show, rlhfctl.tools.rank") & HEAVY
    )


@pytest.mark.parametrize("command", ["show", "watch"])
def test_reading_a_run_loads_nothing_heavy(command: str, tiny_run: Path) -> None:
    assert not loaded_by(CALL.format(arguments=[command, str(tiny_run)])) & HEAVY


def test_looking_at_tokens_loads_nothing_heavy(traced_run: Path) -> None:
    for options in ([], ["--explain"], ["--list"], ["--json"]):
        assert not loaded_by(CALL.format(arguments=["tokens", str(traced_run), *options])) & HEAVY


def test_a_plain_watch_loads_nothing_of_the_command_line(tiny_run: Path) -> None:
    start = "from rlhfctl.__main__ import main\nsys.argv = {}\ntry:\n    main()\nexcept SystemExit:\n    pass"
    watch = ["rlhfctl", "watch", str(tiny_run)]
    assert not loaded_by(start.format(watch)) & {"typer", "click", "pydantic"}
    assert "typer" in loaded_by(start.format([*watch, "--ascii"]))


def test_help_is_quick() -> None:
    assert fastest("--help") < 0.4


def test_validate_is_quick() -> None:
    assert fastest("validate", "quickstart") < 1.0
