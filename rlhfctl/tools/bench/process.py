"""Run a measurement in processes of its own: its memory and its threads are its own, and what it leaves is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rlhfctl.errors import EngineError

_LOOK_EVERY_S = 0.02


def run_module(
    module: str,
    arguments: Sequence[str],
    out: Path,
    *,
    where: str,
    fix: str,
    threads: int | None = None,
    timeout: float | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS OUT` and return the JSON that it writes to OUT.

    `threads`: OMP_NUM_THREADS, else that of this process. `processes`: how many are started, as one group of
    torch.distributed; the first one writes OUT. EngineError with the end of its output if one fails.
    subprocess.TimeoutExpired after `timeout` seconds (None: never).
    """
    environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", module, *arguments, str(out)]
    with contextlib.ExitStack() as inside:
        started = [inside.enter_context(_started(command, environment | group)) for group in _groups(processes)]
        _require_success(started, where, fix, timeout)
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def _groups(processes: int) -> list[dict[str, str]]:
    """Return the variables by which each process finds the others; none for one process alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = range(processes)
    return [place | {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks]


@contextlib.contextmanager
def _started(
    command: Sequence[str], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start a process; it is killed if it still runs at the end of the block. Gives its output, both streams, too."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def _require_success(
    started: Sequence[tuple[subprocess.Popen[bytes], IO[bytes]]], where: str, fix: str, timeout: float | None
) -> None:
    """Wait for all processes; raise EngineError as soon as one has failed, because the others would wait for it."""
    until = None if timeout is None else time.monotonic() + timeout
    while any(process.poll() is None for process, _ in started) and not any(process.poll() for process, _ in started):
        if until is not None and time.monotonic() > until:
            raise subprocess.TimeoutExpired(started[0][0].args, float(timeout or 0))
        time.sleep(_LOOK_EVERY_S)
    for process, said in started:
        if process.poll():
            said.seek(0)
            text = said.read().decode(errors="replace")[-2000:]
            raise EngineError(f"the worker stopped with code {process.returncode}:\n{text}", where=where, fix=fix)
