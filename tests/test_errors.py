"""Every error that stops a command names a way out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rlhfctl import errors

PACKAGE = Path(errors.__file__).parent
ERRORS = {"RlhfctlError", "DataError", "HandoffError", "RunBusyError", "EngineError", "RewardFailed"}
QUESTIONS = "tools/interview.py"  # its errors are answers to what was typed, and the question is asked again


def without_fix(source: str) -> list[int]:
    """The lines that construct an error without saying what to do about it."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ERRORS
        and not any(keyword.arg in ("fix", None) for keyword in node.keywords)
    ]


def test_an_error_without_a_fix_is_found() -> None:
    assert without_fix('x = 1\nraise DataError("a", where="b")\nraise DataError("a", fix="c")') == [2]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_error_names_a_way_out(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) != QUESTIONS:
        assert without_fix(path.read_text(encoding="utf-8")) == []
