"""Find the device, measure the peak memory of a stage, and release unused memory.

Reads and resets the counters of torch and of Linux (/proc/self). Leaves out estimates of memory before a run
(planning).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch


def device() -> torch.device:
    """Return the GPU (CUDA or MPS) if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # written to clear_refs, it makes Linux reset the highest resident size


def restart_peak() -> None:
    """Reset the peak memory to the present use.

    Without a GPU only Linux can do that. Elsewhere the peak stays that of the whole process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def peak_bytes() -> int:
    """Return the peak memory in bytes since `restart_peak`.

    With a GPU it is the memory that torch reserved there. Without one it is the resident size of this process,
    libraries included.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return highest_resident_bytes()


def highest_resident_bytes() -> int:
    """Return this process's highest resident size in bytes since `restart_peak`, or since its start.

    VmHWM is preferred to ru_maxrss: in Linux the ru_maxrss of a child process starts at that of its parent.
    """
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def resident_bytes() -> int:
    """Return this process's resident size in bytes; the highest one if the system does not report the present one."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
    return highest_resident_bytes()


def wait() -> None:
    """Wait until the GPU has finished all its work. A clock that is read before would not count it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def passing_over_old_objects() -> Iterator[None]:
    """Let garbage collections look at new objects only while the block runs: what exists by now is libraries mostly.

    TRL and accelerate collect garbage again and again; looking through all libraries each time takes 0.2 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release_memory() -> None:
    """Return unused memory to the system: the next stage needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # this C library has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
