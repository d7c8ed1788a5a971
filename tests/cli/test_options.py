"""Shared arguments: a recipe by file or by name, `--set`, and completion of names."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rlhfctl.cli import options
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.shipped import shipped_recipes


def test_a_recipe_is_loaded_by_file_or_by_name_with_overrides(tiny_recipe: Path) -> None:
    assert options.load(str(tiny_recipe), ["seed=7"]).recipe.seed == 7
    assert options.load("quickstart", []).path == shipped_recipes()["quickstart"]
    with pytest.raises(RlhfctlError, match="quickstart"):
        options.load("quickstrt", [])


def test_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs") / "quick"
    run.mkdir(parents=True)
    (run / "recipe.yaml").touch()
    (run / "events.jsonl").touch()
    assert "quickstart" in options.complete_recipe("qui") and options.complete_shipped("qui") == ["quickstart"]
    assert options.complete_run("runs/q") == ["runs/quick"]
    assert options.complete_recipe_or_run("runs/q") == ["runs/quick"]


def test_options_of_several_machines_reach_a_command_as_one(tmp_path: Path) -> None:
    seen: list[tuple[str, options.Launched]] = []
    app = typer.Typer()

    @app.command()
    @options.launching(options.MACHINES)
    def command(name: str = "unnamed", *, launched: options.Launched, force: bool = False) -> None:
        seen.append((name, launched))

    file = tmp_path / "fsdp.yaml"
    given = ["--num-machines", "2", "--machine-rank", "1", "--accelerate-config", str(file), "--name", "a"]
    assert [CliRunner().invoke(app, words).exit_code for words in (given, ["--force"])] == [0, 0]
    assert seen[0] == ("a", options.Launched([f"launch.accelerate_config={file}", "launch.num_machines=2"], 1))
    assert seen[1] == ("unnamed", options.NOT_LAUNCHED)
