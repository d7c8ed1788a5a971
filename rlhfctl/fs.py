"""Write files and folders atomically, hash their content, lock a run, and move old folders aside.

Every file of a run that other stages read is written under a temporary name, flushed to disk and renamed. A kill or a
full disk at any moment leaves the old state or the new one. Imports the standard library only. Leaves out the manifest
(artifacts.py) and the names of folders (paths.py).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhfctl.errors import DiskFull, RlhfctlError, RunBusyError

_HASH_BLOCK_BYTES = 1 << 20
_ATTEMPTS, _BETWEEN_ATTEMPTS_S = 10, 0.02  # for taking a lock
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TORCH_CANNOT_WRITE = ("inline_container", "PytorchStreamWriter", "iostream error")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` to `path` atomically: temporary file in the same folder, fsync, rename, fsync of the folder."""
    raw = data.encode("utf-8") if isinstance(data, str) else data
    partial = path.with_name(f".{path.name}.partial")
    with report_full_disk(path):
        with partial.open("wb") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)


def append(path: Path, data: bytes) -> None:
    """Append to a file, which is made if it is missing; the bytes are on disk when this returns."""
    with report_full_disk(path):
        is_new = not path.exists()
        with path.open("ab") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        if is_new:
            _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys atomically; raise ValueError for NaN and infinity."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """Convert `value` to strict JSON on one line; NaN and infinity become the strings "nan", "inf", "-inf"."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def require_new(path: Path, *, fix: str) -> None:
    """Raise RlhfctlError if `path` exists already: to be called before the work whose result is written there."""
    if path.is_symlink() or path.exists():
        raise RlhfctlError("already exists and is not overwritten", where=str(path), fix=fix)


def write_new(path: Path, data: str | bytes, *, fix: str) -> None:
    """Write a new file atomically and make its folder; raise RlhfctlError if `path` exists or writing fails."""
    require_new(path, fix=fix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise RlhfctlError(f"cannot be written: {error.strerror}", where=str(path), fix=fix) from error


@contextmanager
def publish_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; if the block ends without an error, rename it to `final` in one step.

    Removes what a killed attempt left under the temporary name. Replaces `final` if it exists: the caller checks that
    it is an incomplete attempt without a manifest.
    """
    partial = final.with_name(f".{final.name}.partial")
    replaced = final.with_name(f".{final.name}.replaced")
    with report_full_disk(final):
        for leftover in (partial, replaced):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        yield partial
        _widen_modes(partial)
        sync_tree(partial)
        if final.exists():
            os.replace(final, replaced)
        os.replace(partial, final)
        _sync_folder(final.parent)
        if replaced.exists():
            shutil.rmtree(replaced)


def _widen_modes(folder: Path) -> None:
    """Set the file modes below `folder` as the umask says: safetensors makes files that only their owner can read."""
    allowed = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(stat.S_IMODE(file.stat().st_mode) | allowed)


def link_tree(folder: Path, to: Path, *, skip: str) -> None:
    """Give every file below `folder` a second name below the existing folder `to`, except in the top folder `skip`.

    A file is copied where the file system has no hard links. Hidden files and temporary ones are left out.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or relative.parts[0] == skip or relative.parts[0].startswith("."):
            continue
        target = to / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError as error:
            if error.errno in _FULL:
                raise
            shutil.copy2(path, target)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def report_full_disk(path: Path) -> Iterator[None]:
    """Replace a library's error by `disk_full` if writing at or below `path` fails because the disk is full."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error, path):
            raise
        raise disk_full(path) from error


def is_disk_full(error: Exception, path: Path | None = None) -> bool:
    """Check whether an error is due to a full disk.

    It may be the system's own error or a library's that quotes it (safetensors). The errors of torch.save give no
    reason: then a test file is written to the disk that holds `path`.
    """
    if isinstance(error, RlhfctlError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    no_reason = isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_CANNOT_WRITE)
    return no_reason and path is not None and not _has_room(path)


def _has_room(path: Path) -> bool:
    """Check whether one more MiB can be written beside or below `path`."""
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(_HASH_BLOCK_BYTES))
    except OSError as error:
        return error.errno not in _FULL
    return True


def disk_full(path: Path) -> RlhfctlError:
    """Make the error for a full disk."""
    return DiskFull(
        f"no space left on the disk that holds {path}",
        fix="free some space and give the same command again: it resumes from the last complete checkpoint",
    )


def move_aside(folder: Path, into: Path) -> Path:
    """Rename `folder` to a new, dated name under `into`; delete nothing. Returns the new path."""
    into.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        target = into / (f"{folder.name}-{stamp}" if attempt == 0 else f"{folder.name}-{stamp}-{attempt}")
        if not target.exists():
            os.replace(folder, target)
            return target
    raise RlhfctlError(f"no free name left under {into}", fix=f"remove what you no longer need under {into}")


def hash_bytes(data: bytes) -> str:
    """Compute the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Compute the SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))


def hash_json_list(values: Iterable[Any], before: str | None = None) -> str:
    """Compute `hash_json` of a list whose values come one by one, without holding them together.

    With `before` that of [before, values].
    """

    def canonical(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")

    digest = hashlib.sha256(b"[" if before is None else b"[" + canonical(before) + b",[")
    for number, value in enumerate(values):
        digest.update((b"," if number else b"") + canonical(value))
    digest.update(b"]" if before is None else b"]]")
    return digest.hexdigest()


def hash_tree(folder: Path, *, skip: Mapping[str, object] | frozenset[str] = frozenset()) -> dict[str, str]:
    """Hash every file below `folder`: {relative path: SHA-256}; leave out top-level names in `skip` and hidden ones."""
    hashes: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] not in skip and not relative.parts[0].startswith("."):
            hashes[relative.as_posix()] = hash_file(path)
    return hashes


_held_locks: set[int] = set()  # descriptors


def _drop_inherited_locks() -> None:
    """Close the locks in a forked child (a data loader's worker): it must not keep the lock of a killed parent."""
    while _held_locks:
        os.close(_held_locks.pop())


os.register_at_fork(after_in_child=_drop_inherited_locks)


class RunLock:
    """Hold an exclusive flock on a file. The operating system frees it when the process ends, also after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        try:
            with report_full_disk(self.path.parent):
                self._take()
        except OSError as error:
            raise RlhfctlError(
                f"cannot be used as a run folder: {error.strerror}",
                where=str(self.path.parent),
                fix="name another folder with --run-dir",
            ) from error
        return self

    def _take(self) -> None:
        """Take the lock and write the name of this process into the file; raise RunBusyError if it is taken."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 < _ATTEMPTS:  # it may be a short check by is_locked
                    time.sleep(_BETWEEN_ATTEMPTS_S)
                    continue
                holder = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").strip() or "an unknown process"
                os.close(descriptor)
                raise RunBusyError(
                    f"the run {self.path.parent} is in use by {holder}",
                    fix="wait for it to end, stop it, or name another folder with --run-dir",
                ) from None
        os.ftruncate(descriptor, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}, since {started}\n".encode(), 0)
        self._descriptor = descriptor
        _held_locks.add(descriptor)

    def __exit__(self, *_: object) -> None:
        if self._descriptor in _held_locks:
            _held_locks.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None


def is_locked(path: Path) -> bool | None:
    """Check whether a running process holds the `RunLock` on a file; None if this machine cannot tell.

    Changes nothing. Takes a shared lock for a moment, so several processes may check at once. A process that tries to
    take the lock at that moment tries again.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        words = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").split()  # process 123 on host, since ...
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return None
    finally:
        os.close(descriptor)
    # On some file systems a lock is not visible on other machines.
    elsewhere = len(words) > 3 and words[3].rstrip(",") != os.uname().nodename
    return None if elsewhere else False
