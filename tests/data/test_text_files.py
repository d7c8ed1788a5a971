"""Text files: lines that cannot be read are named, and what editors leave in files is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.data.text_files import read_jsonl
from rlhfctl.errors import DataError


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8 text"),
        (b'{"prompt": "q"', "not a JSON object (Expecting ',' delimiter at character 15)"),
        (b"{'prompt': 'q'}", "not a JSON object"),
        (b'["q"]', "expected a JSON object, got a list"),
        (b'"q"', "expected a JSON object, got a string"),
        (b"3", "expected a JSON object, got a number"),
        (b"null", "expected a JSON object, got null"),
        (b'{"prompt": "\\ud83d"}', "\\ud83d is half a surrogate pair, not a character"),
        (b'{"prompt": "\\uDE00 x"}', "\\ude00 is half a surrogate pair"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "q"}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    head, shown, fix = str(caught.value).splitlines()
    assert head == "1 line cannot be read:" and shown.startswith(f"    {path}:2: {said}")
    assert fix.startswith(
        "  fix: convert it: iconv" if "UTF-8" in said else "  fix: one JSON object per line, in UTF-8"
    )


def test_of_many_broken_lines_five_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("{\n" * 8)
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "8 lines cannot be read:" and len(lines) == 8
    assert [line.split(": ")[0] for line in lines[1:6]] == [f"    {path}:{number}" for number in range(1, 6)]
    assert lines[6] == "    and 3 more"


def test_what_editors_leave_in_files_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9 \\ud83d\\ude00"}\r\n\n  \n{"prompt": "last"}')
    rows, places = read_jsonl(path)
    assert rows == [{"prompt": "café 😀"}, {"prompt": "last"}]
    assert places == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="the data file is empty") as caught:
        read_jsonl(path)
    assert caught.value.where == str(path)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data file does not exist") as caught:
        read_jsonl(tmp_path / "nowhere" / "d.jsonl")
    assert caught.value.fix == "check the path; it is read relative to the recipe"
    for name in ("train.jsonl", "test.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError) as caught:
        read_jsonl(tmp_path / "tran.jsonl")
    assert caught.value.where == str(tmp_path / "tran.jsonl")
    assert caught.value.fix == "in that folder: test.jsonl, train.jsonl"
