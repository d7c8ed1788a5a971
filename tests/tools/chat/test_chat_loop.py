"""The loop of a chat: it goes on after an error where a person sits, and ends with the input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from small_chats import Recorder

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.chat import loop


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that reach the session; `stop` is interrupted and `fail` fails."""
    lines: list[str] = []

    def obey(line: str, session: object) -> None:
        lines.append(line)
        if line == "stop":
            raise KeyboardInterrupt
        if line == "fail":
            raise RlhfctlError("it failed", fix="try again")

    monkeypatch.setattr(loop, "RunModels", lambda run: run)
    stand_in = SimpleNamespace(described=lambda: "a chat")
    monkeypatch.setattr(loop, "Session", SimpleNamespace(open=lambda *given, **options: stand_in))
    monkeypatch.setattr(loop, "obey", obey)
    return lines


def talk(*lines: str, **screen: Any) -> Recorder:
    recorder = Recorder(*lines, **screen)
    loop.talk("run", screen=recorder)  # type: ignore[arg-type]
    return recorder


def test_the_chat_outlives_errors_and_ctrl_c(heard: list[str]) -> None:
    screen = talk("one", "fail", "stop", "a\udcff", "two")
    assert heard == ["one", "fail", "stop", "two"]
    assert screen.errors[0] == "it failed\n  fix: try again"
    assert "not UTF-8" in screen.errors[1]
    assert screen.notes == ["a chat", loop.WELCOME, "\nCtrl-D ends the chat", ""]


def test_a_script_ends_at_the_first_error(heard: list[str]) -> None:
    with pytest.raises(RlhfctlError, match="it failed"):
        talk("fail", "two", interactive=False)
    with pytest.raises(KeyboardInterrupt):
        talk("stop", "two", interactive=False)
    assert heard == ["fail", "stop"]
