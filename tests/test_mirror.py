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
    "__main__.py": "the start of the program: test_main.py and cli/test_cli.py call it",
    "labels/screen/": "labels/test_label_screen.py drives the whole app as an annotator does",
    "recipe/sections/": "recipe/test_sections.py and recipe/test_recipe_schema.py hold one table of all rules",
}


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
    assert [module for module in MODULES if not is_tested(module) and not is_excepted(module)] == []


def test_each_exception_is_needed() -> None:
    for name, reason in EXCEPTIONS.items():
        assert reason
        modules = [module for module in MODULES if module == name or (name.endswith("/") and module.startswith(name))]
        assert modules and not all(map(is_tested, modules)), name


def test_names_of_test_files_are_unique() -> None:
    """Pytest imports test files by their name alone."""
    names = Counter(path.name for path in TESTS.rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []
