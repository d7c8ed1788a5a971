"""Runs as commands show them: why stages stopped, and finished runs side by side."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Cli

from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.dashboard.terminal.run_view import Interrupted, open_listeners
from rlhfctl.errors import OutputClosed, RlhfctlError
from rlhfctl.events import Note

NOTE = Note(stage="run", message="hello")


class ClosedPipe(io.StringIO):
    """Standard output whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def stop_reason(events: Path) -> str:
    (record,) = [record for record in read_events(events) if record["event"] == "run_stopped"]
    return str(record["reason"])


# ---------------------------------------------------------------- why stages stopped


def test_ctrl_c_says_how_to_go_on(tiny_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "rlhfctl", "run", str(tiny_recipe), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (run / "sft" / "work" / "inputs.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    # Hit within code that an extension runs by PyRun_String, Python remembers the interrupt and ends by the signal
    # after all that we do: a shell reports 130 either way.
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("number", "code", "reason"), [(signal.SIGTERM, 143, "asked to end (SIGTERM)"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_ends_the_stages_with_its_exit_code(
    number: signal.Signals, code: int, reason: str, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="the same command resumes") as caught, open_listeners(tmp_path / "e") as emit:
        emit(NOTE)
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code and reason in str(caught.value)
    assert stop_reason(tmp_path / "e").startswith(reason)
    assert signal.getsignal(number) is before


def test_a_signal_whose_exception_a_library_swallows_ends_the_stages_at_the_next_event(tmp_path: Path) -> None:
    def swallow() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted), open_listeners(tmp_path / "e") as emit:
        swallow()
        emit(NOTE)
        raise AssertionError("the event must not be emitted")
    assert [record["event"] for record in read_events(tmp_path / "e")] == ["run_stopped"]


def test_a_signal_of_which_a_library_makes_another_error_ends_the_stages_all_the_same(tmp_path: Path) -> None:
    def load_lazily() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("could not import module 'LlamaConfig'") from error

    with pytest.raises(Interrupted, match="the same command resumes"), open_listeners(tmp_path / "e"):
        load_lazily()
    assert stop_reason(tmp_path / "e").startswith("Ctrl-C")


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open_listeners(tmp_path / "e") as emit:
            os.kill(os.getpid(), signal.SIGHUP)
            emit(NOTE)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [record["event"] for record in read_events(tmp_path / "e")] == ["note"]


def test_a_standard_output_that_nobody_reads_is_an_error_with_a_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(OutputClosed, match=r"> run\.log"), open_listeners(tmp_path / "e") as emit:
        emit(NOTE)
    assert [record["event"] for record in read_events(tmp_path / "e")] == ["note", "run_stopped"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RlhfctlError("no rows", where="a.jsonl"), "a.jsonl: no rows"), (ValueError("odd"), "ValueError: odd")],
)
def test_an_error_is_the_reason_in_events_and_goes_on(error: Exception, reason: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, open_listeners(tmp_path / "e"):
        raise error
    assert caught.value is error
    assert stop_reason(tmp_path / "e") == reason


# ---------------------------------------------------------------- runs side by side


def test_runs_side_by_side(tiny_run: Path, tmp_path: Path, here: Cli) -> None:
    shutil.copytree(tiny_run, tmp_path / "other")
    result = here("compare", tiny_run, tmp_path / "other")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("undecided") + result.stdout.count("better") + result.stdout.count("worse") >= 2
    assert "different test prompts" not in result.stdout and "different controls" not in result.stdout


def test_runs_with_other_controls_say_so(tiny_run: Path, tiny_recipe: Path, tmp_path: Path, here: Cli) -> None:
    shutil.copytree(tiny_run, tmp_path / "other")
    fewer = ["--set", "compare.controls={temperatures: [0.0], matched_entropy: false}"]
    assert here("compare", tiny_recipe, "--run-dir", tmp_path / "other", *fewer).returncode == 0
    assert "these runs had different controls" in here("compare", tiny_run, tmp_path / "other").stdout


def test_runs_of_other_models_and_data_say_so(tiny_run: Path, tmp_path: Path, here: Cli) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    for stage, key in (("sft", "model"), ("reward", "data.preferences"), ("ppo", "section")):
        file = other / stage / "manifest.json"
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest["inputs"][key] = "of another"
        file.write_text(json.dumps(manifest), encoding="utf-8")
    said = " ".join(here("compare", tiny_run, other).stdout.split())
    assert "differs from" in said and said.endswith(
        "model, data.preferences"
    )  # a section's keys are told by themselves
