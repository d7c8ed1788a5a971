"""Run a measurement in a process of its own: its memory and its threads are its own, and what it leaves is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfctl.errors import EngineError


def run_module(
    module: str,
    arguments: Sequence[str],
    out: Path,
    *,
    where: str,
    fix: str,
    threads: int | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS OUT` and return the JSON that it writes to OUT.

    `threads`: OMP_NUM_THREADS, else that of this process. EngineError with the end of its output if it fails.
    subprocess.TimeoutExpired after `timeout` seconds (None: never).
    """
    environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", module, *arguments, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode:
        raise EngineError(
            f"the worker stopped with code {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}",
            where=where,
            fix=fix,
        )
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result
