"""Wrong command lines give one message and an exit code, without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--no-such-option", "quickstart"], 2, "No such option"),
        (["rum"], 2, "No such command"),
        (["run"], 2, "Missing argument"),
        (["run", "quickstrt"], 2, "quickstart"),
        (["validate", "quickstart", "--set", "ppo.learning_rat=1e-5"], 2, "did you mean 'learning_rate'"),
        (["validate", "quickstart", "--set", "sft.lora={r: 4}"], 2, "random"),
        (
            ["validate", "quickstart", "--set", "ppo.engine=trl", "--set", "ppo.gradient_accumulation_steps=2"],
            2,
            "wrong number of optimizer steps",
        ),
        (["show", "no-such-run"], 1, "recipe.yaml is missing"),
        (["export", "no-such-run", "--to", "x"], 1, "recipe.yaml is missing"),
        (["runs", "no-such-folder"], 1, "there is no such folder"),
        (["recipes", "show", "quickstrt"], 1, "did you mean 'quickstart'"),
        (["recipes", "copy", "quickstart", "/dev/null"], 1, "already exists"),
        (["init", "/dev/null"], 1, "already exists"),
        (["schema", "--out", "/dev/null"], 1, "was not made by this command"),
        (["compare", "a", "b"], 1, "must all be run folders"),
        (["compare", "quickstart", "--policy-samples", "x.jsonl"], 1, "go together"),
    ],
)
def test_one_message_and_no_traceback(arguments: list[str], code: int, message: str, cli: Cli, tmp_path: Path) -> None:
    result = cli(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("rlhfctl 0.")
