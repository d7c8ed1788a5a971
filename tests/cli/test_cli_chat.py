"""`chat` as a command: options reach the chat, and a piped line is answered in plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.tools.chat import loop


def test_options_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(loop, "talk", lambda run, **options: given.update(options, run=run))
    line = "chat runs/x --stage sft --against ppo --temperature 0.5 --seed 4 --max-new-tokens 9 --prompts text"
    assert CliRunner().invoke(app, line.split()).exit_code == 0
    assert given == {
        "run": Path("runs/x"), "stage": "sft", "against": "ppo", "temperature": 0.5, "seed": 4, "max_new_tokens": 9,
        "prompts": "text",
    }  # fmt: skip
    assert CliRunner().invoke(app, ["chat", "runs/x", "--temperature", "-1"]).exit_code == 2


def test_a_piped_line_is_answered_in_plain_text(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    done = CliRunner().invoke(app, ["chat", str(tiny_run), "--against", "reference"], input="the tea is\n")
    assert done.exit_code == 0, done.exception
    assert done.stderr == "" and "\x1b" not in done.stdout and "you>" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ppo: ") and any(line.startswith("reference: ") for line in lines)
    assert sum("tokens" in line and line.startswith("  (score ") for line in lines) == 2
