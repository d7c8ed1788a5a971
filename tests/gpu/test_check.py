"""The GPU check runs on a CPU, too, and its rows can fail."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tests" / "gpu" / "check.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.ci
def test_it_passes_here() -> None:
    command = ["bash", str(ROOT / "tests" / "gpu" / "check.sh")]
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all passed" in result.stdout


def test_a_row_that_fails_fails_the_check_and_is_a_line(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(check: object) -> tuple[bool, str]:
        raise AssertionError("not what it should be")

    rows = {"good": (lambda check: (True, "fine"), True), "bad": (broken, True), "long": (broken, False)}
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(sys, "argv", ["check.py", "--quick"])
    assert module.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["good", "ok"], ["bad", "FAILED"], ["long", "skipped"]]
    assert lines[-1] == "1 failed"
