"""Read how much memory this machine, or its container, has. Standard library alone: `doctor` loads no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path


def memory_bytes() -> tuple[int | None, int | None]:
    """Return the memory of the machine (or the container's limit, if lower) and the part available, in bytes.

    Each is None where the system does not say.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None, None
    limit = _text(Path("/sys/fs/cgroup/memory.max")).strip()
    total = min(total, int(limit)) if limit.isdigit() else total
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    return total, min(total, int(available[1]) * 1024) if available else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
