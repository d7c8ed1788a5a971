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

    def run(loaded: object, folder: Path, request: object, emit: object) -> None:
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


def test_samples_made_elsewhere_reach_the_request_if_both_files_are_there(asked: Any, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).touch()
    files = {"policy_samples": str(tmp_path / "a"), "reference_samples": str(tmp_path / "b")}
    _, request = asked("compare", "--policy-samples", str(tmp_path / "a"), "--reference-samples", str(tmp_path / "b"))
    assert request.options == files
    missing = ["--policy-samples", str(tmp_path / "a"), "--reference-samples", str(tmp_path / "none")]
    result = CliRunner().invoke(app, ["compare", "quickstart", *missing])
    assert isinstance(result.exception, RlhfctlError) and "the file of samples does not exist" in str(result.exception)
