"""`rlhfctl course` as commands: list, copy, check and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhfctl.cli import app


def test_list_copy_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = CliRunner().invoke(app, ["course", "list"])
    assert listed.exit_code == 0 and listed.output.count("\n") == 11
    copied = CliRunner().invoke(app, ["course", "copy", "7"])
    assert copied.exit_code == 0 and Path("course-7/course-7.yaml").is_file()
    failed = CliRunner().invoke(app, ["course", "check", "7", "course-7/course-7.yaml"])
    assert failed.exit_code == 1 and failed.output.endswith("not solved yet\n")
    recipe = Path("course-7/course-7.yaml")
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("data:\n", "data:\n  leaks: drop\n"), encoding="utf-8")
    passed = CliRunner().invoke(app, ["course", "check", "7", "course-7/course-7.yaml"])
    assert passed.exit_code == 0 and passed.output.endswith("solved\n")
