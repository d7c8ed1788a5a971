"""Lines that are typed: what they mean at each side, errors that a person may make, and the end of the input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_writers import demonstrations, wrote

from rlhfctl.errors import RlhfctlError


def texts(run: Path) -> list[str]:
    return [message["content"] for row in demonstrations(run) for message in row["messages"]]


def test_slashes_and_numbers_can_be_texts(tmp_path: Path) -> None:
    wrote(tmp_path, "", "//hi", "//quit is a command", "2", "/own 2", "1.5", "/own 1>2", "")
    assert texts(tmp_path) == ["/hi", "/quit is a command", "2", "2", "1.5", "1>2"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["hi", "3"], "there is no suggestion 3"),
        (["hi", "0"], "there is no suggestion 0"),
        (["hi", "1>1"], "stands twice"),
        (["hi", ""], "no answer is chosen"),
        (["hi", "/edit"], "no suggestion is named"),
        (["hi", "/edit x"], "there is no suggestion 'x'"),
        (["hi", "/edit ²"], "there is no suggestion"),
        (["hi", "/end"], "no turn has an answer yet"),
        (["/edit 1"], "the user speaks next"),
        (["/undo"], "nothing has been said yet"),
        (["/quik"], "there is no command /quik; did you mean"),
        (["\udcff"], "not UTF-8"),
    ],
)
def test_a_mistake_is_told_and_the_conversation_goes_on(lines: list[str], said: str, tmp_path: Path) -> None:
    screen = wrote(tmp_path, *lines)
    (error,) = screen.errors
    assert said in error
    with pytest.raises(RlhfctlError, match=re.escape(said)):  # a script is ended
        wrote(tmp_path, "/drop", *lines, interactive=False)


def test_ctrl_c_at_a_line_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(line: str, writer: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhfctl.tools.write.loop.obey", interrupted)
    screen = wrote(tmp_path, "/help", "hi", "1", "")
    assert "Ctrl-D leaves" in screen.notes[0] and texts(tmp_path) == ["hi", " draw 0"]
    with pytest.raises(KeyboardInterrupt):
        wrote(tmp_path, "/help", interactive=False)


def test_an_end_that_fails_leaves_and_the_next_start_does_it(tmp_path: Path) -> None:
    (tmp_path / "labels.sqlite").mkdir()
    with pytest.raises(RlhfctlError, match="labels cannot be kept here"):
        wrote(tmp_path, "hi", "own", "")
    (tmp_path / "labels.sqlite").rmdir()
    screen = wrote(tmp_path)
    assert "2 labels" in screen.shown[0] and texts(tmp_path) == ["hi", "own"]
