"""events.jsonl: lines are strict JSON, a torn line spoils only itself, and records read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from rlhfctl.dashboard.jsonl import JsonlWriter, read_events, records
from rlhfctl.events import Metrics, Note, Sample, StageStarted


def note(message: str) -> Note:
    return Note(stage="run", message=message, time=1.0)


def test_each_event_is_on_disk_at_once_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    writer = JsonlWriter(path)
    assert not path.parent.exists()
    writer(note("a"))
    assert list(read_events(path)) == [{"event": "note", "stage": "run", "time": 1.0, "message": "a"}]
    writer(Metrics(stage="sft", step=3, total=9, values={"loss": 2.5}, time=2.0))
    writer.close()
    last = list(read_events(path))[-1]
    assert last == {
        "event": "metrics",
        "stage": "sft",
        "time": 2.0,
        "step": 3,
        "values": {"loss": 2.5},
        "split": "train",
        "total": 9,
        "eta_s": None,
    }
    assert next(iter(json.loads(path.read_text().splitlines()[0]))) == "event"


def test_a_second_writer_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for message in "ab":
        with JsonlWriter(path) as writer:
            writer(note(message))
    assert [record["message"] for record in read_events(path)] == ["a", "b"]
    assert path.read_bytes().count(b"\n") == 2


def test_lines_that_are_no_records_are_passed_over() -> None:
    lines = [b'{"event": "note"}\n', b"3\n", b"[1, 2]\n", b"null\n", b'"event"\n', b"\xff\n", b'{"event": "sample"}']
    assert [record["event"] for record in records(lines)] == ["note", "sample"]


def test_a_torn_line_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JsonlWriter(path) as writer:
        writer(note("whole"))
        writer(note("torn in the middle of é"))
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index("é".encode()) + 1])
    assert [record["message"] for record in read_events(path)] == ["whole"]
    with JsonlWriter(path) as writer:
        writer(note("later"))
    assert [record["message"] for record in read_events(path)] == ["whole", "later"]
    assert len(path.read_bytes().splitlines()) == 3


def test_a_line_without_its_newline_but_whole_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "note"}')
    assert list(read_events(path)) == [{"event": "note"}]


def test_lines_are_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with JsonlWriter(path) as writer:
        writer(Metrics(stage="ppo", step=1, values={"kl": math.nan, "score": -math.inf, "ok": np.float32(0.5)}))  # type: ignore[dict-item]
        writer(
            StageStarted(stage="ppo", settings={"path": Path("a/b"), "ids": (1, np.int64(2)), "none": None, "on": True})
        )
        writer(Sample(stage="ppo", step=1, prompt="two\nlines\u2028é\ud800", response="\x00"))
    records = [json.loads(line, parse_constant=refuse) for line in path.read_bytes().split(b"\n")[:-1]]
    assert records[0]["values"] == {"kl": None, "score": None, "ok": 0.5}
    assert records[1]["settings"] == {"path": "a/b", "ids": [1, 2], "none": None, "on": True}
    assert records[2]["prompt"] == "two\nlines\u2028é\ud800"
    assert "é".encode() in path.read_bytes()
    assert len(list(read_events(path))) == 3
