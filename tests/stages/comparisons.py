"""Helpers of tests that run the compare stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from rlhfctl.cli import app


def invoke(*arguments: object) -> Any:
    """Call the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report_of(run: Path) -> dict[str, Any]:
    """Read the report of a run's comparison."""
    report: dict[str, Any] = json.loads((run / "compare" / "compare.json").read_text())
    return report
