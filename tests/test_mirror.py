"""Each module of the package has a test file of its name in the mirrored folder: a newcomer finds the tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "rlhfctl"
MODULES = sorted(
    path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py",)
)
# Module, or folder with a slash at its end -> why it has no test file of its name.
EXCEPTIONS = {
    "__main__.py": "the start of the program: test_cli.py calls it",
    "cli/": "thin commands: test_cli.py, and the tests of the tools that they call",
    "recipe/sections/": "recipe/test_sections.py and recipe/test_recipe_schema.py hold one table of all rules",
}
# Modules whose test file is still to be written.
MISSING: tuple[str, ...] = (
    "dashboard/terminal/console.py",
    "dashboard/terminal/draw.py",
    "dashboard/terminal/parts.py",
    "dashboard/terminal/progress.py",
    "dashboard/terminal/run_view.py",
    "generation/generator.py",
    "generation/kl.py",
    "models/adapter_folders.py",
    "models/adapters.py",
    "models/architecture.py",
    "models/heads.py",
    "models/language_model.py",
    "models/loading.py",
    "models/scoring.py",
    "models/special_tokens.py",
    "models/tensors.py",
    "models/tokenizing.py",
    "planning/advice.py",
    "planning/meter.py",
    "planning/ppo_memory.py",
    "planning/probe.py",
    "planning/stages.py",
    "planning/view.py",
    "rewards/episode.py",
    "rewards/model.py",
    "rewards/weighted.py",
    "tools/bench/costs.py",
    "tools/bench/inputs.py",
    "tools/bench/view.py",
    "tools/bench/workers.py",
    "tools/bench/workload.py",
    "tools/data.py",
    "tools/recipes.py",
    "tools/reference.py",
    "tools/show.py",
    "tools/validate.py",
    "training/rl/experience.py",
    "training/rl/metrics.py",
    "training/rl/minibatch.py",
    "training/rl/preparation.py",
    "training/rl/values.py",
    "training/trl/options.py",
    "training/trl/quiet.py",
)


def names_of(module: str) -> tuple[str, str]:
    """The names that a test file of a module may have: with its folder's name if another module has the same name."""
    path = Path(module)
    return f"test_{path.stem}.py", f"test_{path.parent.name or 'rlhfctl'}_{path.stem}.py"


def is_tested(module: str) -> bool:
    return any((TESTS / Path(module).parent / name).is_file() for name in names_of(module))


def is_excepted(module: str) -> bool:
    return any(module == name or (name.endswith("/") and module.startswith(name)) for name in EXCEPTIONS)


def test_each_module_has_a_test_file_of_its_name() -> None:
    assert len(MODULES) > 100
    untested = {module for module in MODULES if not is_tested(module) and not is_excepted(module)}
    assert untested == set(MISSING)


def test_each_exception_is_needed() -> None:
    for name, reason in EXCEPTIONS.items():
        assert reason
        modules = [module for module in MODULES if module == name or (name.endswith("/") and module.startswith(name))]
        assert modules and not all(map(is_tested, modules)), name


def test_names_of_test_files_are_unique() -> None:
    """Pytest imports test files by their name alone."""
    names = Counter(path.name for path in TESTS.rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []
