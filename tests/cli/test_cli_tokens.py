"""`rlhfctl tokens` as a command: table, text, explanation, list, tree and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.errors import RlhfctlError


def output(run: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["tokens", str(run), *options])
    assert result.exit_code == 0, result.exception
    return result.output


def test_each_form_of_an_episode(traced_run: Path) -> None:
    table = output(traced_run, "--update", "2", "--episode", "1")
    assert "ppo, update 2, episode 1 (traced: 0 to 7)" in table and "return" in table and "ratio 2" in table
    text = output(traced_run, "--as", "text", "--by", "kl")
    assert "KL from" in text and "thirds of the largest" in text and "\x1b" not in text
    explained = output(traced_run, "--explain", "--token", "0")
    assert "position 0" in explained and "as recorded" in explained and "differs" not in explained
    assert "policy_loss" in explained and "the same" in explained
    assert output(traced_run, "--list").count("\n") == 4
    assert "every response to the prompt" in output(traced_run, "--tree", "--depth", "1")


def test_json(traced_run: Path) -> None:
    assert json.loads(output(traced_run, "--json"))["tokens"]
    assert json.loads(output(traced_run, "--json", "--explain"))["losses"]["computed"]
    assert [row["update"] for row in json.loads(output(traced_run, "--list", "--json"))] == [1, 2, 3]
    assert len(json.loads(output(traced_run, "--tree", "--json"))["nodes"]) == 46


@pytest.mark.parametrize("options", [["--token", "1"], ["--by", "kl"], ["--depth", "2"]])
def test_an_option_without_effect_is_refused(options: list[str], traced_run: Path) -> None:
    result = CliRunner().invoke(app, ["tokens", str(traced_run), *options])
    assert isinstance(result.exception, RlhfctlError) and "add --" in str(result.exception)
