"""Run many small programs with their tests in the sandbox, and say how each ended.

Sandbox keeps one zygote process per worker (zygote.py) and hands each a program at a time; results are kept by program,
tests and limits. Before the first program runs, real attempts to read a file outside, to open a socket and to fork must
fail, or nothing is run at all. Writes one file for that attempt into the system's temporary folder and removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlhfctl.sandbox import modes
from rlhfctl.sandbox.checks import Check

Outcome = Literal["compile_error", "runtime_error", "failed", "passed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
KEPT = 1 << 17  # results in memory: more than the programs of a long PPO
_GRACE = 10.0  # seconds beyond the time limit after which a silent zygote is replaced

_ATTEMPTS = """
def read():
    return len(open({secret!r}).read())
def connect():
    import socket
    socket.socket()
def fork():
    import os
    if os.fork() == 0:
        os._exit(0)
def attempt(do):
    try:
        do()
    except OSError:
        return "refused"
    return "done"
"""


@dataclass(frozen=True)
class Limits:
    """Limits of one program. `seconds`: wall-clock time. `memory_mb`: address space, the interpreter's own included."""

    seconds: float = 2.0
    memory_mb: int = 256


@dataclass(frozen=True)
class Job:
    """A program (Python source) and its checks."""

    program: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Result:
    """How a program ended. `message`: the error, or why it was stopped; "" without either. `passed`: checks that held.

    An error anywhere is compile_error or runtime_error, also where other checks hold; a time limit is a runtime error.
    """

    outcome: Outcome
    message: str = ""
    passed: int = 0


class Sandbox:
    """Run jobs in confined processes, `workers` at a time (None: one per core).

    EngineError if programs cannot be confined here. `mode`: how they are confined (None: as modes.choose says).
    """

    def __init__(
        self, limits: Limits | None = None, workers: int | None = None, mode: modes.Mode | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.mode = mode or modes.choose()
        count = workers or len(os.sched_getaffinity(0))
        self._zygotes = [_Zygote(self.mode) for _ in range(count)]
        self._results: OrderedDict[tuple[Job, Limits], Result] = OrderedDict()
        self._close = weakref.finalize(self, _end_all, self._zygotes)
        self._prove()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygotes."""
        self._close()

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Run each program with its checks and return the results in the order of `jobs`. Equal jobs run once."""
        new = list(dict.fromkeys(job for job in jobs if (job, self.limits) not in self._results))
        fresh = dict(zip(new, self._run_all(new), strict=True))
        for job, result in fresh.items():
            self._results[job, self.limits] = result
        found = [self._results[job, self.limits] for job in jobs]
        while len(self._results) > KEPT:
            self._results.popitem(last=False)
        return found

    def _run_all(self, jobs: Sequence[Job]) -> list[Result]:
        results: list[Result | None] = [None] * len(jobs)
        left = iter(range(len(jobs)))
        lock = threading.Lock()

        def work(zygote: _Zygote) -> None:
            while True:
                with lock:
                    index = next(left, None)
                if index is None:
                    return
                results[index] = _read(zygote.report(jobs[index], self.limits), jobs[index].checks)

        if jobs:
            busy = self._zygotes[: len(jobs)]
            with ThreadPoolExecutor(len(busy)) as pool:
                list(pool.map(work, busy))
        return [result for result in results if result is not None]

    def _prove(self) -> None:
        """Attempt what must be refused. EngineError, and no zygote is left, if any of it is done."""
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("secret")
            file.flush()
            program = _ATTEMPTS.format(secret=file.name)
            checks = tuple(Check("value", f"attempt({name})", "'refused'") for name in ("read", "connect", "fork"))
            try:
                (result,) = self._run_all([Job(program, checks)])
            except BaseException:
                self.close()
                raise
        if result.outcome != "passed":
            self.close()
            raise modes.refusal(
                f"{self.mode} does not confine a program here ({result.message or 'it did what it must not'})"
            )


class _Zygote:
    """One zygote process; it is started anew after it failed."""

    def __init__(self, mode: modes.Mode) -> None:
        self.mode = mode
        self.process: subprocess.Popen[str] | None = None

    def report(self, job: Job, limits: Limits) -> dict[str, Any]:
        """Run one job. A zygote that ends or stays silent is replaced, and the job counts as a runtime error."""
        process = self.process or self._start()
        checks = [{"kind": check.kind, "source": check.source} for check in job.checks]
        order = {"program": job.program, "checks": checks, "seconds": limits.seconds, "memory": limits.memory_mb << 20}
        assert process.stdin is not None and process.stdout is not None
        watch = threading.Timer(limits.seconds + _GRACE, process.kill)
        watch.start()
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            report: dict[str, Any] = json.loads(process.stdout.readline())
            return report
        except (OSError, ValueError):
            self.end()
            return {"said": "", "ended": "the sandbox broke off"}
        finally:
            watch.cancel()

    def _start(self) -> subprocess.Popen[str]:
        # A fixed hash seed: the order of a set of strings, and so what a program prints, is the same in every run.
        process = subprocess.Popen(
            modes.command(self.mode), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            encoding="utf-8", env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PATH": os.environ.get("PATH", "")},
            cwd="/", start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        if not process.stdout.readline():
            said = process.stderr.read().strip().splitlines() or ["it ended at once"]
            process.wait()
            raise modes.refusal(f"{self.mode} does not work here: {said[-1]}")
        self.process = process
        return process

    def end(self) -> None:
        """End the process, and any program that it runs."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()  # the kernel then kills its fork
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()


def _end_all(zygotes: Sequence[_Zygote]) -> None:
    for zygote in zygotes:
        zygote.end()


def _read(report: dict[str, Any], checks: Sequence[Check]) -> Result:
    """Turn a report into a result. What the program may have written is taken for nothing but text."""
    if report["ended"]:
        return Result("runtime_error", report["ended"])
    try:
        said = json.loads(report["said"])
        error, message, results = said["error"], str(said["message"]), said["results"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Result("runtime_error", "the program ended before its tests")
    if not isinstance(results, list) or not all(isinstance(one, str) for one in results):
        return Result("runtime_error", "the program ended before its tests")
    passed = sum(check.holds(one) for check, one in zip(checks, results, strict=False))
    if error:
        return Result("compile_error" if error == "compile_error" else "runtime_error", message, passed)
    return Result("passed" if len(results) == len(checks) == passed else "failed", "", passed)
