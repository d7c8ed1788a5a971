"""Serve programs to run: fork one confined process for each, and pass on what it says.

    python -P -s -S -B ROOT/rlhfctl/sandbox/zygote.py ROOT landlock|bubblewrap FOLDER...

Started by pool.py. Reads one job per line from standard input (JSON) and writes one report per line. The zygote has
imported what small programs use, and forks for each program, which takes milliseconds; a new interpreter would take ten
times as long. It is confined to reading FOLDERs itself, and each fork confines itself further (confine.py) before it
runs any of the program. It ends when its standard input is closed.

A job is {"program", "checks", "seconds", "memory"}, a report {"said", "ended"}: the text that the fork wrote, at most
MOST_SAID bytes, and how it ended. The text may be anything, because the program may have written it: pool.py reads it
with suspicion. Standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

MOST_SAID = 1 << 20  # bytes that a program may say in all
PRELOADED = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "typing",
)  # fmt: skip
_MESSAGE = 200  # characters of an error's message
COMPILE, RUNTIME = "compile_error", "runtime_error"


def main(root: str, mode: str, readable: list[str]) -> None:
    """Confine this process, say so, and serve jobs until standard input ends."""
    sys.path.insert(0, root)
    from rlhfctl.sandbox import confine, values

    for name in PRELOADED:
        __import__(name)
    sys.path.remove(root)
    nowhere = os.open(os.devnull, os.O_RDWR)  # before the confinement, which allows reading alone
    confine.forbid_new_privileges()
    abi = confine.restrict_files(readable) if mode == "landlock" else 0
    calls = confine.syscall_filter()
    gc.collect()
    gc.freeze()  # forks need not look at these objects again
    _answer({"ready": mode, "abi": abi})
    for line in sys.stdin.buffer:
        _answer(run_one(json.loads(line), calls, nowhere, confine, values))


def _answer(report: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------- the zygote's side


def run_one(job: dict[str, Any], calls: bytes, nowhere: int, confine: Any, values: Any) -> dict[str, str]:
    """Fork a confined process for one job, wait for its end or kill it at the time limit, and return its report."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_program(job, calls, nowhere, writer, confine, values)
    os.close(writer)
    said, reason = _listen(reader, time.monotonic() + float(job["seconds"]))
    os.close(reader)
    os.kill(child, signal.SIGKILL)  # a process that has ended is still there until it is waited for
    status = os.waitpid(child, 0)[1]
    if not reason and os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        reason = f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return {"said": said.decode("utf-8", "replace"), "ended": reason}


def _listen(reader: int, deadline: float) -> tuple[bytes, str]:
    """Read what the fork says until it ends. Return that, and why the zygote stopped it, or ""."""
    poll, said = select.poll(), b""
    poll.register(reader, select.POLLIN)
    poll.register(sys.stdin.fileno(), 0)  # reports that the caller has gone
    while (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            if descriptor != reader:
                return said, "the caller has gone"
            chunk = os.read(reader, 1 << 16)
            if not chunk:
                return said, ""
            said += chunk
            if len(said) > MOST_SAID:
                return b"", f"more than {MOST_SAID} bytes of output"
    return said, "time limit"


# ---------------------------------------------------------------- the program's side


def _be_the_program(
    job: dict[str, Any], calls: bytes, nowhere: int, writer: int, confine: Any, values: Any
) -> NoReturn:
    """Confine this fork, run the program and its checks, say what came out, and end."""
    try:
        os.setsid()
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.dup2(writer, 3)
        os.closerange(4, 1 << 10)
        os.chdir("/")
        confine.die_with_parent()
        confine.drop_capabilities()
        confine.limit_resources(int(job["memory"]), float(job["seconds"]))
        confine.restrict_calls(calls)
        random = sys.modules["random"]
        random.seed(0)
        report = run_checks(job["program"], job["checks"], values.as_text)
    except BaseException as error:  # noqa: BLE001 - nothing may return into the zygote's loop
        report = {"error": RUNTIME, "message": _described(error), "results": []}
    try:
        text = json.dumps(report).encode()
        while text:
            text = text[os.write(3, text) :]
    finally:
        os._exit(0)


def run_checks(program: str, checks: list[dict[str, str]], as_text: Any) -> dict[str, Any]:
    """Run a program and its checks in this process: {"error", "message", "results"}, one text per check.

    The first error ends it. `kind` of a check: io runs the program on the input `source` and gives its output; value
    evaluates `source` where the program has run, and gives its value as text; truth gives whether it is true; run
    executes it and gives passed, or failed after an AssertionError.
    """
    try:
        code = compile(program, "<program>", "exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return {"error": COMPILE, "message": _described(error), "results": []}
    results: list[str] = []
    try:
        names: dict[str, Any] | None = None
        if not checks:
            exec(code, {"__name__": "__main__"})
        for check in checks:
            if check["kind"] == "io":
                results.append(_output(code, check["source"]))
                continue
            if names is None:
                names = {"__name__": "__main__"}
                exec(code, names)
            results.append(_result(check, names, as_text))
    except BaseException as error:  # noqa: BLE001 - a program may raise anything
        return {"error": RUNTIME, "message": _described(error), "results": results}
    return {"error": "", "message": "", "results": results}


def _result(check: dict[str, str], names: dict[str, Any], as_text: Any) -> str:
    kind = check["kind"]
    if kind == "run":
        try:
            exec(compile(check["source"], "<test>", "exec"), names)
        except AssertionError:
            return "failed"
        return "passed"
    value = eval(compile(check["source"], "<test>", "eval"), names)
    return str(as_text(bool(value) if kind == "truth" else value))


def _output(code: Any, given: str) -> str:
    """Run the program as a script on the standard input `given`, and return what it prints."""
    written = io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    with contextlib.suppress(SystemExit):  # the usual way to end a script early
        exec(code, {"__name__": "__main__"})
    return written.getvalue().decode("utf-8", "replace")


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_MESSAGE]
    except BaseException:  # noqa: BLE001 - a program's exception may refuse to be shown
        return type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
