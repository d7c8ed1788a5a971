"""Standard error stays empty in every command that ends well, whatever libraries say while they are imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT, run_cli

# Every command that ends well with the tiny recipe and its finished run. `validate --deep` stands in test_recipes.py.
COMMANDS: dict[str, tuple[str, ...]] = {
    "data": ("data", "tiny.yaml"),
    "plan": ("plan", "tiny.yaml", "--run-dir", "run"),
    "export": ("export", "run", "--stage", "sft", "--to", "exported"),
    "export --adapter": ("export", "run", "--adapter", "--to", "adapter"),
    "run": ("run", "tiny.yaml", "--run-dir", "run"),  # all skipped, and into a pipe
    "show": ("show", "run"),
    "show --json": ("show", "run", "--json"),
    "runs": ("runs", "."),
    "watch": ("watch", "run"),
    "compare": ("compare", "run", "run"),
    "validate": ("validate", "tiny.yaml"),
    "doctor": ("doctor",),
    "score": ("score", "run", "rows.jsonl", "--out", "scored.jsonl"),
    "bench": ("bench", "ppo", "tiny.yaml", "--updates", "1", "--rounds", "1"),
    "init": ("init", "--yes", "mine.yaml"),
    "recipes": ("recipes", "list"),
    "recipes copy": ("recipes", "copy", "quickstart", "copied.yaml"),
    "schema": ("schema",),
    "help": ("--help",),
    "version": ("--version",),
}


@pytest.fixture(scope="module")
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny recipe and its finished run."""
    place = tmp_path_factory.mktemp("quiet")
    (place / "tiny.yaml").write_text((tiny_run.parent / "tiny.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copytree(tiny_run, place / "run")
    (place / "rows.jsonl").write_text('{"prompt": "the tea is", "response": " good"}\n', encoding="utf-8")
    return place


LONG = ("bench", "plan", "export", "export --adapter", "score")  # `run` loads the same libraries


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.ci) if name in LONG else name for name in COMMANDS]
)
def test_standard_error_is_empty(name: str, folder: Path) -> None:
    result = run_cli(*COMMANDS[name], cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""


def test_what_libraries_say_at_import_is_silent_and_errors_are_not(tmp_path: Path) -> None:
    """A library that logs, warns and fails while it is imported: the first two are silent, the error is shown."""
    (tmp_path / "noisy.py").write_text(
        "import logging, warnings\n"
        "logging.getLogger('noisy.inside').warning('logged')\n"
        "warnings.warn('warned')\n"
        "raise RuntimeError('failed')\n"
    )
    program = textwrap.dedent("""\
        import sys
        sys.path.insert(0, sys.argv[1])
        from rlhfctl.__main__ import silent_imports
        with silent_imports():
            import noisy
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "logged" not in result.stderr.replace(".warning('logged')", "")
    assert "UserWarning" not in result.stderr
    assert "RuntimeError: failed" in result.stderr
