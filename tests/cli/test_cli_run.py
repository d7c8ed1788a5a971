"""`run`, `sft`, `reward`, `ppo`, `compare`: faults are found before the first stage, and options reach the request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from typer.testing import CliRunner

from rlhfctl import pipeline
from rlhfctl.cli import app
from rlhfctl.errors import RlhfctlError


def test_bad_rows_are_named_before_any_model_loads(tmp_path: Path, tiny_recipe: Path, here: Cli) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": " a", "rejected": " b" if i != 2 else " a"} for i in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tiny_recipe.read_text()
    start = text.index("  preferences:")
    line = text[start : text.index("\n", start)]
    tiny_recipe.write_text(text.replace(line, "  preferences: {source: pairs.jsonl}"))
    result = here("run", tiny_recipe, "--run-dir", tmp_path / "run")
    assert result.returncode == 2
    assert "pairs.jsonl:3: chosen and rejected are the same" in result.stderr
    assert not (tmp_path / "run" / "sft").exists()


def test_a_wrong_trainer_option_of_a_later_stage_stops_the_run_before_the_first(
    tiny_recipe: Path, tmp_path: Path, here: Cli
) -> None:
    result = here("run", tiny_recipe, "--run-dir", tmp_path / "run", "--set", "reward.trainer.lerning_rate=1")
    assert result.returncode == 2
    assert "did you mean 'learning_rate'" in result.stderr
    assert not (tmp_path / "run" / "sft").exists()


class Asked(Exception):
    """Raised in place of running stages."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_recipe: Path) -> Any:
    """Give a function that runs a command and returns the folder and the request that reach the pipeline."""
    found: list[tuple[Path, Any]] = []

    def run(loaded: object, folder: Path, request: object, emit: object, launcher: object) -> None:
        found.append((folder, request))
        raise Asked

    monkeypatch.setattr(pipeline, "run", run)

    def command(name: str, *options: str) -> tuple[Path, Any]:
        where = ["--run-dir", str(tmp_path / "run")]
        result = CliRunner().invoke(app, [name, str(tiny_recipe), *where, *options])
        assert isinstance(result.exception, Asked), result.output
        return found[-1]

    return command


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("run --from reward --until ppo --force", {"start": "reward", "until": "ppo", "force": True}),
        ("sft", {"only": "sft"}),
        ("reward --policy org/model", {"only": "reward", "external": {"base": "org/model"}}),
        ("ppo --policy a --reward-model b", {"only": "ppo", "external": {"base": "a", "reward": "b"}}),
        ("compare --policy a --reference b", {"only": "compare", "external": {"policy": "a", "reference": "b"}}),
    ],
)
def test_options_reach_the_request(command: str, expected: dict[str, Any], asked: Any, tmp_path: Path) -> None:
    folder, request = asked(*command.split())
    assert folder == tmp_path / "run"
    assert {name: value for name, value in vars(request).items() if value} == expected


def test_run_says_where_its_report_is(tiny_run: Path) -> None:
    said = (tiny_run / "stdout.txt").read_text(encoding="utf-8").splitlines()
    assert said[-1] == f"report: {tiny_run / 'report.html'}" and said[-2].startswith("run: ")
    assert "<!doctype html>" in (tiny_run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("command", "writes"), [("run", True), ("compare", True), ("sft", False), ("ppo", False)])
def test_a_report_that_fails_is_a_warning(
    command: str, writes: bool, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> Path:
        raise ZeroDivisionError(f"in {folder.name}\nof the report")

    monkeypatch.setattr(pipeline, "run", lambda *_: [None])
    monkeypatch.setattr("rlhfctl.dashboard.terminal.run_view.print_verdict", lambda _: None)
    monkeypatch.setattr("rlhfctl.report.write.report_at_end", fails)
    result = CliRunner().invoke(app, [command, str(tiny_recipe), "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    said = "warning: the report could not be written (ZeroDivisionError: in run of the report); again: rlhfctl report "
    assert warned == ([f"{said}{tmp_path / 'run'}"] if writes else [])


def test_samples_made_elsewhere_reach_the_request_if_both_files_are_there(asked: Any, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).touch()
    files = {"policy_samples": str(tmp_path / "a"), "reference_samples": str(tmp_path / "b")}
    _, request = asked("compare", "--policy-samples", str(tmp_path / "a"), "--reference-samples", str(tmp_path / "b"))
    assert request.options == files
    missing = ["--policy-samples", str(tmp_path / "a"), "--reference-samples", str(tmp_path / "none")]
    result = CliRunner().invoke(app, ["compare", "quickstart", *missing])
    assert isinstance(result.exception, RlhfctlError) and "the file of samples does not exist" in str(result.exception)
