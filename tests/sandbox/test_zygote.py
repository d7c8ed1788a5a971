"""The side of the sandbox that runs programs, called here without confinement on programs that need none."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from rlhfctl.sandbox import modes, zygote
from rlhfctl.sandbox.values import as_text


def run(program: str, *checks: tuple[str, str]) -> dict[str, Any]:
    return zygote.run_checks(program, [{"kind": kind, "source": source} for kind, source in checks], as_text)


def test_each_kind_of_check_gives_its_text() -> None:
    program = "f = lambda x: x + 1\n"
    report = run(
        program, ("value", "f(1)"), ("truth", "f(-1)"), ("run", "assert f(1) == 2"), ("run", "assert f(1) == 3")
    )
    assert report == {"error": "", "message": "", "results": ["n2", "n0", "passed", "failed"]}


def test_a_script_reads_its_input_anew_for_each_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert run("print(input()[::-1])", ("io", "ab"), ("io", "cd\n"))["results"] == ["ba\n", "dc\n"]


def test_the_first_error_ends_the_checks() -> None:
    report = run("f = lambda x: 1 // x", ("value", "f(1)"), ("value", "f(0)"), ("value", "f(1)"))
    assert (report["error"], report["results"]) == ("runtime_error", ["n1"])
    assert report["message"].startswith("ZeroDivisionError")


def test_a_program_without_checks_is_run_once() -> None:
    assert run("x = 1")["error"] == ""
    assert run("x = 1 / 0")["error"] == "runtime_error"
    assert run("x = = 1")["error"] == "compile_error"


def test_an_exception_that_refuses_to_be_shown_is_named() -> None:
    silent = "class Silent(Exception):\n    def __str__(self): raise ValueError\nraise Silent"
    assert run(silent)["message"] == "Silent"


def test_a_zygote_ends_with_its_caller(confining: None) -> None:
    """Also while it runs a program: nothing is left behind by a caller that was killed."""
    process = subprocess.Popen(
        modes.command(modes.choose()), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stdin is not None and process.stdout is not None
    assert json.loads(process.stdout.readline())["ready"]
    job = {"program": "while True: pass", "checks": [], "seconds": 60, "memory": 1 << 28}
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    time.sleep(0.1)
    process.stdin.close()
    assert process.wait(timeout=5) == 0
    process.stdout.close()
