"""Rows from files of every kind, folders and (short of a network) the Hub; broken ones say what is wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from rlhfctl.data import load, sources
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Demonstrations, Preferences, Prompts, Source, looks_like_id

ROWS = [{"prompt": "a, b", "chosen": 'say "c"', "rejected": "d\ne"}, {"prompt": "ü", "chosen": "f", "rejected": "g"}]


def jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")


def csv_file(path: Path) -> None:
    text = 'prompt,chosen,rejected\r\n"a, b","say ""c""","d\ne"\r\nü,f,g\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as spreadsheets write it, with a byte-order mark


def zipped(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


def arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": jsonl,
    "rows.ndjson": jsonl,
    "rows.jsonl.gz": zipped,
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)) and None,
    "inside.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})) and None,
    "rows.csv": csv_file,
    "rows.tsv": lambda path: path.write_text('prompt\tchosen\trejected\na, b\t"say ""c"""\t"d\ne"\nü\tf\tg\n') and None,
    "rows.parquet": lambda path: pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "file.arrow": arrow_file,
    "stream.arrow": arrow_stream,
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "one-split": lambda path: DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(path),
}


def source(path: Path | str, **more: Any) -> Source:
    return Preferences(source=str(path), **more)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    rows, places, fingerprint = sources.read(source(path), "pair")
    assert rows == ROWS and len(places) == 2 and all(str(path) in place for place in places)
    assert sources.read(source(path), "pair")[2] == fingerprint
    if path.is_file() and name != "rows.jsonl.gz":
        path.write_bytes(path.read_bytes() + b"\n")
        assert sources.fs.hash_file(path) != fingerprint


def test_places_are_lines_where_there_are_lines(tmp_path: Path) -> None:
    csv_file(tmp_path / "rows.csv")
    assert sources.read_file(tmp_path / "rows.csv")[1] == [f"{tmp_path}/rows.csv:2", f"{tmp_path}/rows.csv:4"]
    (tmp_path / "rows.jsonl").write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert sources.read_file(tmp_path / "rows.jsonl")[1] == [f"{tmp_path}/rows.jsonl:2", f"{tmp_path}/rows.jsonl:4"]


def test_an_empty_cell_is_no_value(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen\na,\n,b\n")
    assert sources.read_file(tmp_path / "rows.csv")[0] == [
        {"prompt": "a", "chosen": None},
        {"prompt": None, "chosen": "b"},
    ]


def test_plain_text_is_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("one\n\n  \ntwo words \n")
    rows, places, _ = sources.read(Prompts(source=str(path)), "prompt")
    assert rows == [{"prompt": "one"}, {"prompt": "two words "}]
    assert places == [f"{path}:1", f"{path}:4"]
    with pytest.raises(DataError, match="no pairs"):
        sources.read(source(path), "pair")


def test_a_split_is_chosen_by_name(tmp_path: Path) -> None:
    both = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])})
    both.save_to_disk(tmp_path / "saved")
    assert len(sources.read(source(tmp_path / "saved"), "pair")[0]) == 2
    assert len(sources.read(source(tmp_path / "saved", split="test"), "pair")[0]) == 1
    with pytest.raises(DataError, match="there is no split 'dev'") as caught:
        sources.read(source(tmp_path / "saved", split="dev"), "pair")
    assert "train, test" in str(caught.value.fix)


def test_a_folder_of_files_is_all_of_them_by_name(tmp_path: Path) -> None:
    (tmp_path / "b-test.jsonl").write_text('{"prompt": "2"}\n')
    (tmp_path / "a-train.jsonl").write_text('{"prompt": "1"}\n')
    (tmp_path / "README.md").write_text("about")
    rows, _, fingerprint = sources.read(Prompts(source=str(tmp_path)), "prompt")
    assert [row["prompt"] for row in rows] == ["1", "2"]
    assert [row["prompt"] for row in sources.read(Prompts(source=str(tmp_path), split="test"), "prompt")[0]] == ["2"]
    (tmp_path / "b-test.jsonl").write_text('{"prompt": "3"}\n')
    assert sources.read(Prompts(source=str(tmp_path)), "prompt")[2] != fingerprint
    with pytest.raises(DataError, match="no file is of the split 'dev'"):
        sources.read(Prompts(source=str(tmp_path), split="dev"), "prompt")


BROKEN: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", "the data file is empty"),
    ("a.jsonl", b"\n \n", "the data file is empty"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n[1]\n', "2 lines cannot be read"),
    ("a.jsonl", b'{"prompt": "\xff"}\n', "a.jsonl:1: not UTF-8 text"),
    ("a.jsonl", b'{"prompt": "\\ud800"}\n', "half a surrogate pair"),
    ("a.jsonl", b'{"prompt": ' + b"[" * 200_000 + b"\n", "cannot be read"),
    ("a.jsonl.gz", b"\x1f\x8b\x08\x00", "cannot be unpacked"),
    ("b.jsonl.gz", gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 20, "cannot be unpacked"),  # zlib's own error
    ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "not JSON: Extra data in line 2"),
    ("a.json", b'[{"prompt": "a"}', "not JSON"),
    ("a.json", b'"a"', "expected a list of objects, got a string"),
    ("a.json", b'{"a": [], "b": []}', "expected a list of objects, got an object"),
    ("a.json", b"[1]", "item 1 is a number, not an object"),
    ("a.json", b"[]", "there are no rows"),
    ("a.csv", b"prompt,prompt\na,b\n", "names its columns badly"),
    ("a.csv", b"prompt,chosen\na\n", "a.csv:2: 1 cells, but the first line names 2 columns"),
    ("a.csv", b'prompt,chosen\n"a" b,c\n', "a.csv:2:"),
    ("a.csv", b'prompt,chosen\n"a,c\n', "cannot be read"),
    ("a.csv", b"prompt\n\xe4\n", "not UTF-8 text: byte 0xe4 in line 2"),
    ("a.csv", b"prompt,chosen\n", "there are no rows"),
    ("a.parquet", b"PAR1 not really", "not a whole Parquet file"),
    ("a.arrow", b"ARROW1 not really", "not a whole Arrow file"),
    ("a.xlsx", b"PK", "the ending .xlsx is of no known kind"),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_a_broken_file_says_what_is_wrong_with_it(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        sources.read(source(path), "pair")
    assert said in str(caught.value), str(caught.value)
    assert str(path) in str(caught.value.where or "") + str(caught.value)


def test_a_missing_file_names_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("prompt\na\n")
    with pytest.raises(DataError, match="does not exist") as caught:
        sources.read(source(tmp_path / "trian.csv"), "pair")
    assert "train.csv" in str(caught.value.fix)


def test_a_damaged_saved_folder_is_no_traceback(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"gone")
    with pytest.raises(DataError, match="not a whole"):
        sources.read(source(tmp_path / "saved"), "pair")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        sources.read(source(tmp_path / "empty"), "pair")


@pytest.mark.parametrize("key", ["subset", "split", "revision"])
def test_a_file_has_no_splits(key: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=f"{key} is of data on the Hub"):
        sources.read(source(tmp_path / "rows.jsonl", **{key: "x"}), "pair")


def test_the_hub_is_asked_with_all_that_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*given: Any, **named: Any) -> Dataset:
        asked.append((given, named))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    section = source("owner/name", subset="harmless", split="test", revision="abc")
    rows, places, fingerprint = sources.read(section, "pair")
    assert asked == [(("owner/name",), {"name": "harmless", "split": "test", "revision": "abc"})]
    assert rows == ROWS and places == ["owner/name row 1", "owner/name row 2"]
    assert sources.read(source("owner/name"), "pair")[2] == fingerprint
    assert asked[1][1] == {"name": None, "split": "train", "revision": None}


def test_what_cannot_be_fetched_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*given: Any, **named: Any) -> Dataset:
        raise ConnectionError("no route\nand a long trace")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"neither a file or folder here nor a data set .* no route\n"):
        sources.read(source("owner/name"), "pair")


def test_what_may_be_an_id_on_the_hub() -> None:
    assert all(looks_like_id(name) for name in ("owner/name", "squad", "Owner-1/a.b_c"))
    assert not any(looks_like_id(name) for name in ("a/b/c", "rows.jsonl", "data/rows.csv.gz", "a b/c", ""))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "cut\n{"prompt": "c"}\n', "not a JSON object (Unterminated string"),
        ("a.jsonl", b'{"prompt": "a"}\n[1]\n{"prompt": "c"}\n', "expected a JSON object, got a list"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n{"prompt": "c"}\n', "not UTF-8 text"),
        ("a.csv", b"prompt,level\na,1\nb\nc,2\n", "1 cells, but the first line names 2 columns"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_bad_row(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    source = str(tmp_path / name)
    with pytest.raises(DataError, match="1 line cannot be read") as caught:
        load.load_prompts(Prompts(source=source), 0)
    line = 3 if name == "a.csv" else 2
    assert f"{source}:{line}: {why}" in str(caught.value) and "data.prompts.bad_rows: drop" in str(caught.value.fix)
    loaded = load.load_prompts(Prompts(source=source, bad_rows="drop"), 0)
    assert [row["prompt"] for row in loaded.rows] == ["a", "c"]
    assert any("1 lines cannot be read and are dropped, the first: " in note and why in note for note in loaded.notes)
    assert loaded.left_out == {f"{source}:{line}": "cannot be read"}


def test_lines_that_cannot_be_read_and_rows_that_cannot_be_used_are_told_at_once(tmp_path: Path) -> None:
    source = str(tmp_path / "a.jsonl")
    Path(source).write_text('{"q": "a", "good": "x"}\n{"q": "cut\n{"q": "b", "good": ""}\n{"q": "c", "good": null}\n')
    how = {"columns": {"prompt": "q", "completion": "good"}}
    with pytest.raises(DataError) as caught:
        load.load_demonstrations(Demonstrations(source=source, **how), 0)
    said = str(caught.value)
    assert "1 line cannot be read:" in said and "2 of 3 rows of data.demonstrations cannot be used:" in said
    assert ":3: completion is empty" in said and "(by `columns` prompt is q, completion is good)" in said
    turned = Demonstrations(source=source, as_conversations=True, **how)
    with pytest.raises(DataError, match="completion is empty"):
        load.load_demonstrations(turned, 0)
    kept = load.load_demonstrations(Demonstrations(source=source, bad_rows="drop", **how), 0)
    assert len(kept.rows) == 1 and len(kept.left_out) == 3
