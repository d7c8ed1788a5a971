"""Two "machines" on one: two network namespaces with a cable between them. Needs root and `ip` (iproute2).

python tests/campaigns/namespaces.py          says whether it works here
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class Machines:
    """The names of the namespaces; commands for machine i begin with `prefix(i)`."""

    names: tuple[str, str]

    def prefix(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", self.names[number]]


def refused() -> str | None:
    """Why no namespaces can be made here; None if they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"rlhfctl-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    link = ["ip", "link", "add", f"rt{os.getpid()}", "type", "veth", "peer", "name", f"ru{os.getpid()}"]
    cable = subprocess.run(link, capture_output=True, text=True, check=False)
    if cable.returncode == 0:
        _run("ip", "link", "del", f"rt{os.getpid()}")
    _run("ip", "netns", "del", name)
    return None if cable.returncode == 0 else f"virtual network cables are not permitted: {cable.stderr.strip()}"


@contextmanager
def two_machines() -> Iterator[Machines]:
    """Make two namespaces, joined by a cable; remove them afterwards."""
    own = os.getpid() % 100_000
    machines = Machines((f"rlhfctl-a-{own}", f"rlhfctl-b-{own}"))
    ends = (f"ra{own}", f"rb{own}")
    try:
        for name in machines.names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(machines.names, ends, ADDRESSES, strict=True):
            _run("ip", "link", "set", end, "netns", name)
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            _run("ip", "-n", name, "link", "set", end, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        yield machines
    finally:
        for name in machines.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    print(refused() or "two namespaces can be made here")
