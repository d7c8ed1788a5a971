"""Choose how programs are confined on this machine: Landlock, else bubblewrap, else refuse with one message.

Whatever the choice, each program also has seccomp and rlimits (confine.py). Reads the kernel and the PATH. Leaves out
the proof that the confinement holds: pool.py makes real attempts before the first program runs.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Literal

from rlhfctl.errors import EngineError
from rlhfctl.sandbox import confine

Mode = Literal["landlock", "bubblewrap"]
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package
ZYGOTE = Path(__file__).with_name("zygote.py")
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/urandom")
_FIX = "use Linux 5.13 or newer with Landlock on x86_64 or aarch64, or install bubblewrap (apt-get install bubblewrap)"


def choose() -> Mode:
    """Choose the confinement. EngineError, with what to install, where neither Landlock nor bubblewrap is there."""
    if not confine.has_seccomp():
        raise refusal("programs can be confined on Linux alone, on x86_64 or aarch64")
    if confine.landlock_abi():
        return "landlock"
    if shutil.which("bwrap"):
        return "bubblewrap"
    raise refusal("the kernel has no Landlock, and there is no bwrap")


def refusal(reason: str) -> EngineError:
    """Make the one error for a machine on which programs cannot be confined: they are never run without."""
    return EngineError(f"there is no sandbox to run programs in: {reason}", where="reward unit_tests", fix=_FIX)


def readable_folders() -> list[str]:
    """List what a confined program may read: Python's standard library and the system's shared libraries."""
    stdlib = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    shared = Path(sys.base_prefix, "lib")  # libpython, where Python does not lie in the system's folders
    found = [*stdlib, *([str(shared)] if any(shared.glob("libpython*")) else []), *_SYSTEM_LIBRARIES, *_DEVICES]
    return list(dict.fromkeys(path for path in found if path and Path(path).exists()))


def command(mode: Mode) -> list[str]:
    """Return the command that starts a zygote: isolated from the user's Python packages, inside bwrap if `mode` is."""
    python = os.path.realpath(sys.executable)  # the interpreter itself: a virtual environment's link would lead outside
    readable = readable_folders()
    inner = [python, "-P", "-s", "-S", "-B", str(ZYGOTE), str(ROOT), mode, *readable]
    if mode == "landlock":
        return inner
    binds = [path for path in readable if path not in _DEVICES] + [python, str(ZYGOTE.parent), str(ROOT / "rlhfctl")]
    arguments = [part for path in dict.fromkeys(binds) for part in ("--ro-bind", path, path)]
    return ["bwrap", "--unshare-all", "--new-session", *arguments, "--dev", "/dev", "--chdir", "/", *inner]
