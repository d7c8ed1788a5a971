"""Hold the package to the sizes in docs/design.md: no folder, file or class grows until nothing can be found in it."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "rlhfctl"
FILES = sorted(PACKAGE.rglob("*.py"))
LARGEST_SHARE = 1 / 5  # of the package's lines in one folder, its own folders included
LONGEST_FILE = 400
LONGEST_CLASS = 250
REASON = "Longer than 400 lines because"  # in the head of a file that has a good one


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_folder_holds_more_than_a_fifth() -> None:
    lines: Counter[str] = Counter()
    for path in FILES:
        for folder in path.relative_to(PACKAGE).parents:
            lines[str(folder)] += lines_of(path)
    total = lines.pop(".")
    too_large = {folder: count for folder, count in lines.items() if count > total * LARGEST_SHARE}
    assert not too_large, f"of {total} lines: {too_large}"


def test_long_files_say_why() -> None:
    long = [path for path in FILES if lines_of(path) > LONGEST_FILE]
    heads = {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in long}
    assert not [str(path.relative_to(PACKAGE)) for path, head in heads.items() if REASON not in head]


def test_no_class_is_long() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.end_lineno is not None
    }
    assert len(found) > 100
    assert not {name: count for name, count in found.items() if count > LONGEST_CLASS}


def test_every_file_opens_with_what_it_does() -> None:
    without = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if (text := path.read_text(encoding="utf-8")).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert not without
