"""`bench ppo` as a command: its options reach the measurement, and the figures are written as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.tools.bench import bench, view


def test_options_reach_the_measurement_and_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def measured(work: object, **options: Any) -> dict[str, int]:
        given.update(options)
        return {"updates": 3}

    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(view, "table", lambda found: Text(f"table of {found}"))
    out = tmp_path / "bench.json"
    options = ["--against", "trl", "--critic", "head", "--updates", "3", "--rounds", "1", "--json", str(out)]
    result = CliRunner().invoke(app, ["bench", "ppo", *options])
    assert result.exit_code == 0, result.output
    del given["say"]
    assert given == {"against": "trl", "critic": "head", "updates": 3, "rounds": 1, "processes": 1}
    assert "table of" in result.output
    assert json.loads(out.read_text(encoding="utf-8")) == {"updates": 3}
