"""Atomic files and folders with a kill at every step, the one message for a full disk, moving aside, the lock."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError, RunBusyError


class Killed(BaseException):
    """Stands for a kill: nothing that cleans up after an Exception may see it."""


@contextlib.contextmanager
def stopping_at(below: Path, step: int | None, error: BaseException | None = None) -> Iterator[list[str]]:
    """Raise in place of the `step`th call of os.fsync or os.replace (None: never). Yields the calls that were made."""
    calls: list[str] = []
    originals: dict[str, Callable[..., None]] = {"fsync": os.fsync, "replace": os.replace}

    def make(call: str) -> None:
        if len(calls) == step:
            raise error or Killed
        calls.append(call)

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        path = next(path for path in [below, *below.rglob("*")] if os.path.samestat(path.stat(), status))
        make(f"fsync {path.name}" + (f" {status.st_size}" if path.is_file() else ""))
        originals["fsync"](descriptor)

    def replace(old: Path, new: Path) -> None:
        make(f"replace {old.name} {new.name}")
        originals["replace"](old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        yield calls


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- files


def test_a_file_is_flushed_before_it_takes_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with stopping_at(tmp_path, None) as calls:
        fs.write_atomic(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    assert calls == ["fsync .a.txt.partial 6", "replace .a.txt.partial a.txt", f"fsync {tmp_path.name}"]
    fs.write_atomic(path, b"\xff\n")
    assert path.read_bytes() == b"\xff\n" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("step", "left"), [(0, "old"), (1, "old"), (2, "new")])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.EIO, "broken disk")], ids=["kill", "error"])
def test_a_write_cut_short_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, step: int, left: str, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with stopping_at(tmp_path, step, error), pytest.raises(type(error)):
        fs.write_atomic(path, "new")
    assert path.read_text() == left
    fs.write_atomic(path, "newer, and longer")
    assert path.read_text() == "newer, and longer" and names(tmp_path) == ["a.txt"]


def test_a_first_write_cut_short_leaves_no_file(tmp_path: Path) -> None:
    for step in (0, 1):
        with stopping_at(tmp_path, step), pytest.raises(Killed):
            fs.write_atomic(tmp_path / "a.txt", "new")
        assert not (tmp_path / "a.txt").exists()


def test_what_is_appended_is_flushed_and_a_new_file_with_its_name(tmp_path: Path) -> None:
    with stopping_at(tmp_path, None) as calls:
        fs.append(tmp_path / "a.jsonl", b"one\n")
        fs.append(tmp_path / "a.jsonl", b"two\n")
    assert calls == ["fsync a.jsonl 4", f"fsync {tmp_path.name}", "fsync a.jsonl 8"]
    assert (tmp_path / "a.jsonl").read_bytes() == b"one\ntwo\n"
    full = OSError(errno.ENOSPC, "full")
    with stopping_at(tmp_path, 0, full), pytest.raises(RlhfctlError, match="no space left on the disk"):
        fs.append(tmp_path / "a.jsonl", b"three\n")


def test_json_is_sorted_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    fs.write_json(path, {"b": "ü", "a": [1.5, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "a": [\n    1.5,\n    null\n  ],\n  "b": "ü"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        fs.write_json(path, {"a": float("nan")})
    assert '"b"' in path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- a full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_full_disk_is_one_message(tmp_path: Path, number: int, step: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with stopping_at(tmp_path, step, OSError(number, "full")), pytest.raises(RlhfctlError) as caught:
        fs.write_atomic(path, "new")
    assert str(caught.value).splitlines()[0] == f"no space left on the disk that holds {path}"
    assert caught.value.fix is not None and "free some space" in caught.value.fix


def test_a_full_disk_inside_a_folder_is_the_same_message(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError) as caught, fs.publish_folder(tmp_path / "model"):
        raise OSError(errno.ENOSPC, "full")
    assert str(caught.value).startswith(f"no space left on the disk that holds {tmp_path / 'model'}\n")
    assert not (tmp_path / "model").exists()


def test_a_full_disk_that_a_library_reports_in_its_own_error(tmp_path: Path) -> None:
    wrapped = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RlhfctlError, match="no space left on the disk"), fs.publish_folder(tmp_path / "model"):
        raise wrapped
    assert fs.is_disk_full(wrapped)


def test_a_full_disk_that_torch_does_not_name_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save says only that it could not write; whether the disk is full has to be asked."""
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    with pytest.raises(RuntimeError, match="unexpected pos"), fs.report_full_disk(tmp_path / "not" / "there"):
        raise error
    assert not fs.is_disk_full(error, tmp_path)

    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, raw: bytes) -> None:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fs.tempfile, "TemporaryFile", lambda **_: Full())
    assert fs.is_disk_full(error, tmp_path)
    assert not fs.is_disk_full(RuntimeError("shapes differ"), tmp_path)


def test_a_place_that_can_be_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(RlhfctlError, match="cannot be used as a run folder"), fs.RunLock(place / ".lock"):
            pass


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "No space left on device"), RuntimeError("shapes differ"), OSError("odd")):
        assert not fs.is_disk_full(error)
        with pytest.raises(type(error)) as caught, fs.publish_folder(tmp_path / "model"):
            raise error
        assert caught.value is error


# ---------------------------------------------------------------- folders


def fill(folder: Path, text: str) -> None:
    (folder / "a.txt").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "b.txt").write_text(text * 2)


def whole(text: str) -> dict[str, str]:
    return {"a.txt": text, "sub/b.txt": text * 2}


def test_a_folder_is_flushed_to_the_last_file_before_it_takes_its_name(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "model"
    with stopping_at(tmp_path, None) as calls, fs.publish_folder(final) as folder:
        assert folder.parent == final.parent and names(folder) == []
        fill(folder, "new")
        assert not final.exists()
    assert content(final) == whole("new") and names(final.parent) == ["model"]
    renamed = calls.index("replace .model.partial model")
    assert sorted(calls[:renamed]) == ["fsync .model.partial", "fsync a.txt 3", "fsync b.txt 6", "fsync sub"]
    assert calls[renamed + 1 :] == ["fsync deep"]


def test_a_folder_whose_making_fails_is_absent_and_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    final = tmp_path / "model"
    for _ in range(2):
        with pytest.raises(Killed), fs.publish_folder(final) as folder:
            (folder / "torn.txt").write_text("half")
            raise Killed
        assert not final.exists()
    with fs.publish_folder(final) as folder:
        fill(folder, "new")
    assert content(final) == whole("new") and names(tmp_path) == ["model"]


def test_a_folder_that_was_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "model"
    final.mkdir()
    fill(final, "old")
    with pytest.raises(Killed), fs.publish_folder(final) as folder:
        (folder / "torn.txt").write_text("half")
        raise Killed
    assert content(final) == whole("old")
    with fs.publish_folder(final) as folder:
        fill(folder, "new")
    assert content(final) == whole("new") and names(tmp_path) == ["model"]


@pytest.mark.parametrize("before", ["absent", "there"])
def test_a_kill_at_any_step_leaves_a_whole_folder_or_none_and_the_next_attempt_succeeds(
    tmp_path: Path, before: str
) -> None:
    final, replaced = tmp_path / "model", tmp_path / ".model.replaced"
    states = []
    for step in range(20):
        if before == "there":
            final.mkdir()
            fill(final, "old")
        finished = False
        with contextlib.suppress(Killed), stopping_at(tmp_path, step):
            with fs.publish_folder(final) as folder:
                fill(folder, "new")
            finished = True
        if final.exists():
            assert content(final) in (whole("old"), whole("new"))
            states.append(content(final)["a.txt"])
        else:  # between the two renames: the old one is whole under its other name, and no manifest names it
            assert before == "absent" or content(replaced) == whole("old")
            states.append("none")
        with fs.publish_folder(final) as folder:
            fill(folder, "newer")
        assert content(final) == whole("newer") and names(tmp_path) == ["model"]
        shutil.rmtree(final)
        if finished:
            break
    assert finished
    # 4 flushes, the rename of the old one, the rename of the new one, the flush of the parent.
    assert states == (["old"] * 5 + ["none"] + ["new"] * 2 if before == "there" else ["none"] * 5 + ["new"] * 2)


# ---------------------------------------------------------------- moving aside


def test_what_is_moved_aside_never_collides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20261101-120000")  # all within one second
    kept = []
    for index in range(4):
        folder = tmp_path / "sft"
        folder.mkdir()
        if index:  # an empty folder, too, must not be replaced by the next one
            (folder / "index").write_text(str(index))
        kept.append(fs.move_aside(folder, tmp_path / "superseded"))
        assert not folder.exists()
    assert [path.name for path in kept] == [f"sft-20261101-120000{end}" for end in ("", "-1", "-2", "-3")]
    assert [content(path) for path in kept] == [{}, {"index": "1"}, {"index": "2"}, {"index": "3"}]


def test_a_file_can_be_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("old")
    kept = fs.move_aside(tmp_path / "recipe.yaml", tmp_path / "superseded")
    assert kept.parent == tmp_path / "superseded" and kept.name.startswith("recipe.yaml-")
    assert kept.read_text() == "old" and names(tmp_path) == ["superseded"]


# ---------------------------------------------------------------- hashes


def test_a_tree_is_known_by_its_visible_files(tmp_path: Path) -> None:
    fill(tmp_path, "x")
    (tmp_path / "sub" / ".inner").write_text("counts")
    (tmp_path / ".lock").write_text("hidden")
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "torn").write_text("hidden")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "c.txt").write_text("skipped")
    (tmp_path / "sub" / "work").write_text("counts")
    hashes = fs.hash_tree(tmp_path, skip=frozenset({"work"}))
    assert list(hashes) == ["a.txt", "sub/.inner", "sub/b.txt", "sub/work"]
    # SHA-256 of "x", from coreutils' sha256sum
    assert hashes["a.txt"] == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert "work/c.txt" in fs.hash_tree(tmp_path)
    (tmp_path / "a.txt").write_text("y")
    assert [k for k, v in fs.hash_tree(tmp_path, skip=frozenset({"work"})).items() if hashes[k] != v] == ["a.txt"]


def test_a_tree_gets_second_names_without_its_work_and_its_leftovers(tmp_path: Path) -> None:
    for name in ("a.json", "model/weights", "work/checkpoint", ".model.partial/weights"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text(name)
    (tmp_path / "two").mkdir()
    fs.link_tree(tmp_path / "one", tmp_path / "two", skip="work")
    files = {file.relative_to(tmp_path / "two").as_posix() for file in (tmp_path / "two").rglob("*") if file.is_file()}
    assert files == {"a.json", "model/weights"}
    assert (tmp_path / "two" / "a.json").samefile(tmp_path / "one" / "a.json")


def test_a_large_file_is_hashed_to_its_end(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 * 2 + b"end"  # two blocks and a bit
    (tmp_path / "a").write_bytes(data)
    assert fs.hash_file(tmp_path / "a") == fs.hash_bytes(data)


def test_the_hash_of_a_value_does_not_depend_on_the_order_of_keys() -> None:
    canonical = '{"a":"ü","b":[1,2]}'.encode()  # fingerprints in manifests rest on it
    assert fs.hash_json({"a": "ü", "b": [1, 2]}) == fs.hash_json({"b": [1, 2], "a": "ü"}) == fs.hash_bytes(canonical)
    assert fs.hash_json([1, 2]) != fs.hash_json([2, 1])
    assert fs.hash_json(1) != fs.hash_json("1")


@pytest.mark.parametrize("values", [[], [1], [{"b": "ü", "a": [1]}, "x", None]])
def test_a_list_that_comes_one_by_one_has_the_hash_of_the_list(values: list[object]) -> None:
    assert fs.hash_json_list(iter(values)) == fs.hash_json(values)
    assert fs.hash_json_list(iter(values), before="é") == fs.hash_json(["é", values])


# ---------------------------------------------------------------- the lock

HOLDER = """
import os, sys, time
from pathlib import Path
from rlhfctl.fs import RunLock

with RunLock(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else None
    if not child:  # of two, the child: it is past what happens at a fork
        print("held", os.getpid() if child == 0 else 0, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(lock: Path, how: str = "alone") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock, and the child that it forked."""
    command = [sys.executable, "-c", HOLDER, str(lock), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = 0
    try:
        word, number = process.stdout.readline().split()
        assert word == "held"
        child = int(number)
        yield process, child
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_a_second_process_is_told_who_holds_the_run_and_a_kill_frees_it(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    lock.write_text("what an earlier holder left is longer than what any holder writes\n" * 9)
    with holder(lock) as (process, _):
        with pytest.raises(RunBusyError) as caught, fs.RunLock(lock):
            pass
        message = str(caught.value)
        said = message.splitlines()[0]
        assert said.startswith(
            f"the run {lock.parent} is in use by process {process.pid} on {os.uname().nodename}, since "
        )
        assert "earlier" not in message
        assert caught.value.exit_code == 4 and "--run-dir" in message
        process.send_signal(signal.SIGKILL)
        process.wait()
        with fs.RunLock(lock):
            assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_a_forked_child_of_the_holder_does_not_keep_the_run(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock, "fork") as (process, child):
        with pytest.raises(RunBusyError), fs.RunLock(lock):  # the child's closing must not free it either
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # still alive
        with fs.RunLock(lock):
            pass


def test_the_lock_is_freed_at_the_end_of_the_block_and_after_an_error(tmp_path: Path) -> None:
    lock = fs.RunLock(tmp_path / ".lock")
    with pytest.raises(ZeroDivisionError), lock:
        with pytest.raises(RunBusyError, match=f"process {os.getpid()}"), fs.RunLock(tmp_path / ".lock"):
            pass
        _ = 1 / 0
    with lock, pytest.raises(RunBusyError), fs.RunLock(tmp_path / ".lock"):
        pass
    with fs.RunLock(tmp_path / ".lock"):
        pass


def test_strict_json_has_no_nan() -> None:
    line = fs.json_line({"a": [1.5, float("nan"), float("-inf")], "b": {"c": None}})
    assert line == '{"a": [1.5, "nan", "-inf"], "b": {"c": null}}'


# ---------------------------------------------------------------- who may read it


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_published_files_have_the_modes_that_the_umask_allows(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        with fs.publish_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("as safetensors writes them")
            (folder / "weights").chmod(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == expected
