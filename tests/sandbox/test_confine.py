"""The layers of the confinement, each alone: a process with only one of them is refused what this one is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhfctl.sandbox import confine

NEEDS_LANDLOCK = pytest.mark.skipif(not confine.landlock_abi(), reason="the kernel has no Landlock")
NEEDS_SECCOMP = pytest.mark.skipif(not confine.has_seccomp(), reason="no list of system calls for this machine")
BEGIN = "import os, sys, socket\nfrom rlhfctl.sandbox import confine\n"


def said(code: str) -> str:
    """Run code in a process of its own, for no confinement can be undone."""
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@NEEDS_LANDLOCK
def test_landlock_alone_lets_read_beneath_its_folders_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    begin = f"confine.forbid_new_privileges()\nconfine.restrict_files([{str(inside)!r}, '/no/such/folder'])\n"
    assert said(begin + f"print(open({str(inside / 'file')!r}).read())") == "inside"
    assert said(begin + f"open({str(outside / 'file')!r})").startswith("PermissionError")
    assert said(begin + f"open({str(inside / 'file')!r}, 'w')").startswith("PermissionError")
    assert said(begin + f"os.remove({str(inside / 'file')!r})").startswith("PermissionError")
    assert (inside / "file").read_text() == "inside"


@NEEDS_LANDLOCK
@pytest.mark.skipif(confine.landlock_abi() < 6, reason="this kernel's Landlock lets signals out")
def test_landlock_alone_keeps_signals_in() -> None:
    begin = "confine.forbid_new_privileges()\nconfine.restrict_files([])\n"
    assert said(begin + "os.kill(os.getppid(), 0)").startswith("PermissionError")


@NEEDS_SECCOMP
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("socket.socket()", "PermissionError"),
        ("os.fork()", "PermissionError"),
        ("os.kill(os.getpid(), 0)", "PermissionError"),
        ("open('/dev/null', 'w')", "PermissionError"),
        ("os.open('/dev/null', os.O_RDWR)", "PermissionError"),
        ("os.get_terminal_size(0)", "OSError: [Errno 25]"),
        ("print(len(open('/dev/null').read()))", "0"),
    ],
)
def test_seccomp_alone_refuses_what_is_not_listed(call: str, error: str) -> None:
    begin = "confine.forbid_new_privileges()\nconfine.restrict_calls(confine.syscall_filter())\n"
    assert said(begin + call).startswith(error)


@NEEDS_SECCOMP
def test_limits_alone_bound_memory_and_files(tmp_path: Path) -> None:
    begin = "confine.limit_resources(1 << 28, 1.0)\n"
    assert said(begin + "bytearray(1 << 29)").startswith("MemoryError")
    assert said(begin + f"open({str(tmp_path / 'file')!r}, 'wb', buffering=0).write(b'x')").startswith("OSError")


@NEEDS_SECCOMP
def test_root_gives_up_its_privileges() -> None:
    held = "print(int([line for line in open('/proc/self/status') if line.startswith('CapEff')][0].split()[1], 16))"
    assert said("confine.drop_capabilities()\n" + held) == "0"


def test_an_unknown_machine_has_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.platform, "machine", lambda: "pdp11")
    assert not confine.has_seccomp()
    with pytest.raises(OSError, match="no list of system calls for pdp11"):
        confine.syscall_filter()
