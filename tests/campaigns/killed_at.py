"""Die (SIGKILL) just before every file-system step of publishing, one after the other, and go on each time.

    python tests/campaigns/killed_at.py RECIPE RUN [--until STAGE] [--set a.b=c ...]

A step is a flush, a rename or a removal, on one path, with which rlhfctl.fs publishes or PPO drops what it needs no
more. An attempt dies before the first step that no attempt has died at yet; the next one goes on from there. So every
step of every publication, checkpoints and manifests included, is died at once. Each attempt is a forked child, so the
libraries are imported once. Prints how many deaths each stage had, and ends with the last attempt's exit status.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.__main__ import main as rlhfctl_main

_OS, _SHUTIL = os, shutil


def arm(run: Path, died: set[str], report: int) -> None:
    """Make the first step that is not in `died` the last thing this process does, its name written to `report`."""

    from rlhfctl.stages import evaluation
    from rlhfctl.training.rl import loop

    def name_of(step: str, what: Any) -> str:
        path = Path(_OS.readlink(f"/proc/self/fd/{what}")) if isinstance(what, int) else Path(what).resolve()
        return f"{step} {path.relative_to(run) if path.is_relative_to(run) else path}"

    def fragile(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, *arguments: Any, **named: Any) -> Any:
            name = name_of(step.__name__, what)
            if name not in died and "superseded" not in name:
                _OS.write(report, name.encode())
                _OS.kill(_OS.getpid(), signal.SIGKILL)
            return step(what, *arguments, **named)

        return call

    class Fragile:
        def __init__(self, module: Any, steps: tuple[str, ...]) -> None:
            self.module, self.steps = module, steps

        def __getattr__(self, name: str) -> Any:
            value = getattr(self.module, name)
            return fragile(value) if name in self.steps else value

    vars(fs)["os"] = Fragile(_OS, ("fsync", "replace"))
    for module in (fs, loop, evaluation):
        vars(module)["shutil"] = Fragile(_SHUTIL, ("rmtree",))


def attempt(arguments: list[str], run: Path, died: set[str]) -> tuple[int, str]:
    """One start of the command in a child; its exit code and the step it died at ('' if it did not)."""
    heard, report = os.pipe()
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        arm(run, died, report)
        sys.argv = ["rlhfctl", *arguments]
        status = 1
        try:
            rlhfctl_main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            os._exit(status)
    os.close(report)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    step = os.read(heard, 4096).decode()
    os.close(heard)
    return code, step


def main() -> int:
    recipe, run, *rest = sys.argv[1:]
    import rlhfctl.stages.compare
    import rlhfctl.stages.ppo
    import rlhfctl.stages.reward
    import rlhfctl.stages.sft  # noqa: F401

    folder = Path(run).resolve()
    died: set[str] = set()
    while True:
        code, step = attempt(["run", recipe, "--run-dir", run, *rest], folder, died)
        if code != -signal.SIGKILL:
            break
        died.add(step)
    deaths = Counter(name.split(" ", 1)[1].split("/")[0] for name in died)
    print(", ".join(f"{count} deaths in {where}" for where, count in sorted(deaths.items())), f"; exit {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
