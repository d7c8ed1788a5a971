"""Marks: only a checkpoint that is whole is gone on from, and the newest of those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhfctl import fs
from rlhfctl.training.checkpoints import MARK, Checkpoint, all_checkpoints, fault, mark_complete, newest_complete

STATES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def make(work: Path, step: int, *, weights: str = "model.safetensors", mark: bool = True) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in (*STATES, weights):
        (folder / name).write_bytes(name.encode() * 10)
    if mark:
        mark_complete(folder)
    return folder


def test_a_marked_checkpoint_is_whole_and_an_unmarked_one_is_not(tmp_path: Path) -> None:
    folder = make(tmp_path, 10, mark=False)
    assert fault(folder) == "it was not finished"
    mark_complete(folder)
    assert fault(folder) is None
    recorded = json.loads((folder / MARK).read_text())["files"]
    assert recorded == {name: 10 * len(name) for name in (*STATES, "model.safetensors")}


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"])
def test_weights_are_whole_sharded_or_an_adapter(tmp_path: Path, weights: str) -> None:
    assert fault(make(tmp_path, 10, weights=weights)) is None


def test_the_states_of_several_processes_are_taken(tmp_path: Path) -> None:
    folder = make(tmp_path, 10, mark=False)
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    mark_complete(folder)
    assert fault(folder) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trainer_state.json", "trainer_state.json"),
        ("optimizer.pt", "optimizer.pt"),
        ("scheduler.pt", "scheduler.pt"),
        ("rng_state.pth", "the random states (rng_state.pth)"),
        ("model.safetensors", "the weights"),
    ],
)
def test_what_a_resume_needs_is_asked_for_twice(tmp_path: Path, name: str, said: str) -> None:
    folder = make(tmp_path, 10, mark=False)
    (folder / name).unlink()
    with pytest.raises(ValueError, match="cannot be marked complete") as caught:
        mark_complete(folder)
    assert str(caught.value).endswith(f"it lacks {said}")
    assert not (folder / MARK).exists()
    # A mark from elsewhere that does not list the file helps no more.
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / MARK).write_text(json.dumps({"files": sizes}))
    assert fault(folder) == f"it lacks {said}"


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path, 10, mark=False)
    (folder / "optimizer.pt").unlink()
    (folder / "rng_state.pth").unlink()
    with pytest.raises(ValueError, match=r"it lacks optimizer\.pt, the random states"):
        mark_complete(folder)


def test_a_file_cut_short_or_gone_is_found(tmp_path: Path) -> None:
    folder = make(tmp_path, 10, mark=False)
    (folder / "shards").mkdir()
    (folder / "shards" / "part").write_bytes(b"12345")
    mark_complete(folder)
    (folder / "shards" / "part").write_bytes(b"123")
    assert fault(folder) == "shards/part has 3 bytes of 5"
    (folder / "shards" / "part").write_bytes(b"")
    assert fault(folder) == "shards/part has 0 bytes of 5"
    (folder / "shards" / "part").unlink()
    assert fault(folder) == "shards/part is missing"
    (folder / "shards" / "part").write_bytes(b"12345")
    assert fault(folder) is None


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", '{"files": 3}', '{"files": ["optimizer.pt"]}', "\xff"])
def test_a_mark_that_cannot_be_read_is_no_mark(tmp_path: Path, text: str) -> None:
    folder = make(tmp_path, 10)
    (folder / MARK).write_bytes(text.encode("latin-1"))
    assert fault(folder) == "its completeness mark cannot be read"


def test_the_mark_is_written_last_and_after_the_files_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path, 10, mark=False)
    calls: list[str] = []
    monkeypatch.setattr(fs, "sync_tree", lambda at: calls.append(f"sync {at.name}"))
    monkeypatch.setattr(fs, "write_json", lambda at, value: calls.append(f"write {at.name}"))
    mark_complete(folder)
    assert calls == ["sync checkpoint-10", f"write {MARK}"]


def test_a_checkpoint_can_be_marked_again_after_a_kill_while_it_was_marked(tmp_path: Path) -> None:
    folder = make(tmp_path, 10)
    (folder / f".{MARK}.partial").write_text('{"fil')
    (folder / "optimizer.pt").write_bytes(b"written again by the resumed training")
    mark_complete(folder)
    assert fault(folder) is None
    assert MARK not in json.loads((folder / MARK).read_text())["files"]


# ---------------------------------------------------------------- which one


def test_order_is_by_number(tmp_path: Path) -> None:
    for step in (20, 100, 3):
        make(tmp_path, step)
    for name in ("checkpoint-best", "checkpoint-", "best", "checkpoint-7.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-999").write_text("a file")
    assert [c.step for c in all_checkpoints(tmp_path)] == [100, 20, 3]
    assert newest_complete(tmp_path) == (Checkpoint(tmp_path / "checkpoint-100", 100), [])


def test_a_faulty_one_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    for step in (10, 20, 90, 100):
        make(tmp_path, step, mark=step != 100)
    (tmp_path / "checkpoint-90" / "optimizer.pt").write_bytes(b"torn")
    found, passed_over = newest_complete(tmp_path)
    assert found == Checkpoint(tmp_path / "checkpoint-20", 20)
    assert passed_over == [
        "checkpoint-100 is passed over: it was not finished",
        "checkpoint-90 is passed over: optimizer.pt has 4 bytes of 120",
    ]


def test_without_a_whole_one_training_starts_anew(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "nowhere") == (None, [])
    make(tmp_path, 10, mark=False)
    assert newest_complete(tmp_path) == (None, ["checkpoint-10 is passed over: it was not finished"])
