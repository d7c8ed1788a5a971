"""Find the device, measure how much memory a stage needs at most, and release what it leaves."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what Linux takes for "forget the highest resident size"


def restart_peak() -> None:
    """Look for the peak from here on (on a CPU only where Linux lets a process do that; else it is the process's)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def peak_bytes() -> int:
    """Highest since `restart`: of the GPU's memory that torch has reserved, without a GPU of this process's resident
    size, libraries included.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return highest_resident_bytes()


def highest_resident_bytes() -> int:
    """This process's highest resident size since `restart`, or its start.

    From VmHWM where there is one: Linux lets a child's ru_maxrss begin at its parent's, whatever it runs.
    """
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def resident_bytes() -> int:
    """This process's resident size now; where the system does not say, the highest it was."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
    return highest_resident_bytes()


def release_memory() -> None:
    """What is not used any more goes back to the system: the next stage needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)
