"""What each `/command` does while a conversation is written."""

from __future__ import annotations

from pathlib import Path

from conftest import ROOT
from small_writers import compared, demonstrations, labels, wrote

from rlhfctl.tools.chat.conversation import Answer
from rlhfctl.tools.write.commands import COMMANDS


def texts(run: Path) -> list[list[str]]:
    return [[message["content"] for message in row["messages"]] for row in demonstrations(run)]


def test_again_draws_others_and_forgets_the_ranking(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "hi", "1>2", "/again", "2", "")
    assert screen.shown[2:4] == ["[1] draw 2", "[2] draw 3"]
    assert texts(tmp_path) == [["hi", " draw 3"]] and labels(tmp_path) == []


def test_undo_goes_back_a_step_at_a_time_and_no_label_is_left(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "hi", "1>2", "own", "/undo", "1", "/undo", "/undo", "hello", "2", "")
    assert texts(tmp_path) == [["hello", " draw 1"]] and labels(tmp_path) == []
    assert screen.notes.count("the last answer is taken back") == 2 and "taken back: hi" in screen.notes
    assert "ranked: 1 > 2" in screen.notes  # it stood again
    assert not (tmp_path / "writing.json").exists()


def test_an_end_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "hi", "1", "and?", "1>2", "/end")
    assert texts(tmp_path) == [["hi", " draw 0"]] and labels(tmp_path) == []
    assert "left out, for it has no answer: and?" in screen.notes


def test_drop_forgets_the_conversation(tmp_path: Path) -> None:
    wrote(tmp_path, "hi", "own", "/drop")
    assert list(tmp_path.iterdir()) == []


def test_a_system_message_begins_a_conversation(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "/system be brief", "hi", "own", "/system late", "", "/system x", "/system", "hi", "1", "")
    assert texts(tmp_path) == [["be brief", "hi", "own"], ["hi", " draw 0"]]
    assert "the conversation has begun" in screen.errors[0] and len(screen.errors) == 1
    assert len(compared(tmp_path)) == 2
    (tmp_path / "texts").mkdir()
    assert "no system message" in wrote(tmp_path / "texts", "/system x", roles=False).errors[0]


def test_several_lines_and_control_characters_are_written_anew_and_not_edited(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "hi", "/edit 1", "new", "", suggest=lambda *_: Answer("ppo", "a\nb\x1b[0m", 3, True))
    assert screen.asked[2] == ("edit> ", "") and any('between """' in note for note in screen.notes)
    assert texts(tmp_path) == [["hi", "new"]]


def test_help_lists_every_command_and_quit_leaves(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "/help", "/quit", "never read")
    assert all(f"/{name}" in screen.notes[0] for name in COMMANDS) and screen.lines == ["never read"]
    page = (ROOT / "docs" / "own-labels.md").read_text(encoding="utf-8")
    assert all(f"`/{name}" in page for name in COMMANDS)
