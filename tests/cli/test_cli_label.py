"""The group `label`: its first command may be left out."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rlhfctl.cli import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["label"], "Ask people which response is better"),
        (["label", "--help"], "export"),
        (["label", "ask", "--help"], "--web"),
        (["label", "export", "--help"], "--combine"),
        (["label", "import", "--help"], "--annotator"),
    ],
)
def test_each_command_has_its_help(arguments: list[str], said: str) -> None:
    assert said in CliRunner().invoke(app, arguments).output


def test_what_is_no_command_is_what_to_label() -> None:
    for arguments in (["label", "nothing-here"], ["label", "ask", "nothing-here"]):
        result = CliRunner().invoke(app, arguments)
        assert "there is no such run or file" in str(result.exception), result.output


def test_an_option_first_is_one_of_ask() -> None:
    result = CliRunner().invoke(app, ["label", "--stats", "nothing-here"])
    assert "there is no such run or file" in str(result.exception), result.output
