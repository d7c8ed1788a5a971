"""The files of `label --write`: a conversation is kept once, whenever a kill comes, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_writers import demonstrations, labels
from test_fs import Killed, stopping_at

from rlhfctl.errors import RlhfctlError, RunBusyError
from rlhfctl.paths import RunPaths
from rlhfctl.tools.write.book import open_book
from rlhfctl.tools.write.conversation import Conversation, Suggestion, Turn

TURN = Turn("hi", [Suggestion("a", "ppo", ""), Suggestion("b", "ppo", "")], [[0], [1]], "a")
DONE = Conversation("one", True, turns=[TURN])
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]}


def test_a_kill_at_any_step_of_the_end_keeps_the_conversation_once(tmp_path: Path) -> None:
    """Steps are the calls of fsync and rename. The first three write what is to be done; after them the end is sure."""
    with open_book(RunPaths(tmp_path), None, "ana") as book:
        book.keep(DONE)
        with stopping_at(tmp_path, None) as calls:
            book.finish(Conversation("zero", True, turns=[TURN]))
    assert len(calls) == 5 and calls[0].startswith("fsync .writing.json.partial")
    for step in range(5):
        run = tmp_path / f"run-{step}"
        run.mkdir()
        with open_book(RunPaths(run), None, "ana") as book:
            book.keep(DONE)
            with stopping_at(run, step), pytest.raises(Killed):
                book.finish(DONE)
        with open_book(RunPaths(run), None, "bo") as book:
            said = book.end_begun()
            if step < 2:
                assert said is None and book.under_way() == DONE
                book.finish(book.under_way() or DONE)
            else:
                assert said is not None and "kept: a conversation of 1 turn" in said
            assert book.end_begun() is None and book.under_way() is None
        assert demonstrations(run) == [ROW]
        ((_, event),) = labels(run)
        assert event.annotator == ("bo" if step < 2 else "ana")
        assert not (run / "writing.json").exists()


def test_a_row_that_was_cut_is_completed(tmp_path: Path) -> None:
    file = tmp_path / "demonstrations.jsonl"
    with open_book(RunPaths(tmp_path), None, "ana") as book:
        book.finish(DONE)
        first = file.read_bytes()
        book.keep(DONE)
        with stopping_at(tmp_path, 3), pytest.raises(Killed):
            book.finish(DONE)
    ending = (tmp_path / "writing.json").read_text()
    for length in range(len(first) + 1):
        file.write_bytes(first + first[:length])
        (tmp_path / "writing.json").write_text(ending)
        with open_book(RunPaths(tmp_path), None, "ana") as book:
            assert book.end_begun() is not None
        assert file.read_bytes() == first * 2
    file.write_bytes(first + b'{"messages": []}')  # another program wrote there, without a line end
    (tmp_path / "writing.json").write_text(ending)
    with open_book(RunPaths(tmp_path), None, "ana") as book:
        book.end_begun()
    assert demonstrations(tmp_path) == [ROW, {"messages": []}, ROW]


def test_a_file_without_a_last_line_end_is_continued(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(ROW))
    with open_book(RunPaths(tmp_path), tmp_path / "mine.jsonl", "ana") as book:
        book.finish(DONE)
    assert demonstrations(tmp_path, "mine.jsonl") == [ROW, ROW]


@pytest.mark.parametrize(
    ("text", "roles", "said"),
    [
        ('{"prompt": "a", "completion": "b"}\n', True, "its last row has no messages"),
        ('{"messages": []}\n', False, "its last row has no prompt and completion"),
        ("[1]\n", True, "its last row has no messages"),
        ("no json\n", True, "its last line is no JSON"),
    ],
)
def test_files_of_other_rows_are_left_as_they_are(text: str, roles: bool, said: str, tmp_path: Path) -> None:
    (tmp_path / "demonstrations.jsonl").write_text(text)
    with open_book(RunPaths(tmp_path), None, "ana") as book:
        with pytest.raises(RlhfctlError, match=said) as told:
            book.check(roles=roles)
        assert "--to" in str(told.value)
    assert (tmp_path / "demonstrations.jsonl").read_text() == text


def test_one_process_at_a_time_writes_in_a_run(tmp_path: Path) -> None:
    with (
        open_book(RunPaths(tmp_path), None, "ana"),
        pytest.raises(RunBusyError, match="another process writes a conversation"),
        open_book(RunPaths(tmp_path), tmp_path / "other.jsonl", "bo"),
    ):
        pass
    with open_book(RunPaths(tmp_path), None, "bo"):
        pass


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="JSON lines"), open_book(RunPaths(tmp_path), tmp_path / "x.csv", "ana"):
        pass
    (tmp_path / "writing.json").write_text('{"conversation": {}}')
    with open_book(RunPaths(tmp_path), None, "ana") as book:
        with pytest.raises(RlhfctlError, match="cannot be read") as told:
            book.under_way()
        assert "move this file away" in str(told.value)
        (tmp_path / "writing.json").unlink()
        (tmp_path / "demonstrations.jsonl").mkdir()
        with pytest.raises(RlhfctlError, match=r"cannot be read: Is a directory"):
            book.finish(DONE)
