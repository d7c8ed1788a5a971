"""The command that starts processes, their threads, and what is read from logs when one of them dies."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from rlhfctl.launching import (
    Death,
    Launcher,
    command,
    end,
    environment,
    find_cause,
    first_death,
    interface_to,
    last_lines,
    launcher_of,
    threads,
)
from rlhfctl.recipe.schema import Launch

KILLED = """\
============================================================
rlhfctl.stage_process FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 11)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 12)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 12
============================================================
"""


def test_a_recipe_without_several_processes_starts_none() -> None:
    assert launcher_of(None) is None and launcher_of(Launch()) is None
    started = launcher_of(Launch(num_processes=2))
    assert started is not None and started.processes == 2 and started.shared_only
    assert not Launcher().shared_only and Launcher().processes == 1


def test_a_program_runs_after_the_command_and_ends_when_it_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    launcher = Launcher(("env", "A=1", sys.executable))
    process = launcher.start(
        ["-c", "import os, sys; print(os.environ['A'], flush=True); sys.stdin.read()"], tmp_path, log
    )
    end(process)  # closes its standard input
    assert process.returncode is not None and end(process) is None  # a second time is no fault
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    )
    process = Launcher().start(["-c", stubborn], tmp_path, log)
    while "on" not in log.read_text():
        time.sleep(0.02)
    end(process, 0.2)
    assert process.returncode == -9


def test_the_command_is_that_of_accelerate_and_does_not_read_the_home_folder(tmp_path: Path) -> None:
    line = command(Launch(num_processes=3), tmp_path)
    assert line[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert line[line.index("--num_processes") + 1] == "3" and "--multi_gpu" in line
    config = Path(line[line.index("--config_file") + 1])
    assert config.parent == tmp_path and "mixed_precision: 'no'" in config.read_text()


@pytest.mark.parametrize(("kind", "plain"), [("FSDP", False), ("DEEPSPEED", False), ("MULTI_CPU", True)])
def test_a_configuration_of_accelerate_is_handed_on(kind: str, plain: bool, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 7\n")
    line = command(Launch(num_processes=2, accelerate_config=str(own)), tmp_path)
    assert str(own) in line and line[line.index("--num_processes") + 1] == "2"
    assert ("--multi_gpu" in line) is plain  # which would turn FSDP off
    assert launcher_of(Launch(accelerate_config=str(own))) is not None


def test_processes_divide_the_threads_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [threads(local) for local in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads(1) >= 1
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert environment(Launch(num_processes=2)) == {"OMP_NUM_THREADS": "2"}  # what the user has set stays


def test_the_interface_is_that_from_which_the_first_machine_is_reached(tmp_path: Path) -> None:
    assert interface_to("127.0.0.1") in ("lo", "lo0", None)
    launch = Launch(num_processes=4, num_machines=2, main_process_ip="127.0.0.1")
    line = command(launch, tmp_path, 1, 1234)
    wanted = {"--machine_rank": "1", "--num_machines": "2", "--main_process_ip": "127.0.0.1"}
    assert {name: line[line.index(name) + 1] for name in wanted} == wanted and "1234" in line
    assert threads(launch.local_processes) == threads(2)


def test_a_killed_process_is_the_cause_and_not_one_that_lost_it() -> None:
    assert first_death(KILLED) == Death(1, -9)
    assert str(Death(1, -9)) == "was killed (SIGKILL)" and str(Death(0, 3)) == "ended with exit code 3"
    assert str(Death(0, -99)) == "was killed (signal 99)"
    assert first_death(KILLED.replace("-9", "-15")) == Death(0, 1)  # the launcher itself ends the others so
    assert first_death("nothing of use") is None


def test_the_cause_is_the_process_that_was_first(tmp_path: Path) -> None:
    """A killed process before an error, an error before those that lost a partner, and the log that says something."""
    log = tmp_path / "libraries.log"
    log.write_text("of the first process\n")
    (tmp_path / "launch-0.log").write_text(KILLED)
    (tmp_path / "process-1.log").write_text("its end\n")
    for number, lost, at in ((0, True, 1.0), (2, False, 2.0), (3, False, 1.0)):
        record = {"number": number, "machine": 0, "time": at, "lost_partner": lost, "error": {"number": number}}
        (tmp_path / f"process-{number}.json").write_text(json.dumps(record))
    found = find_cause(tmp_path, 0, log)
    assert (found.number, found.what, found.lines) == (1, "was killed (SIGKILL)", "    its end")
    (tmp_path / "launch-0.log").write_text(KILLED.replace("-9", "1"))
    found = find_cause(tmp_path, 0, log)
    assert (found.number, found.error, found.lost_partner) == (3, {"number": 3}, False)
    for number in (2, 3):
        (tmp_path / f"process-{number}.json").unlink()
    found = find_cause(tmp_path, 0, log)
    assert (found.number, found.lost_partner, found.lines) == (0, True, "    of the first process")
    assert find_cause(tmp_path, 7, log).number == -1  # another machine, of which nothing is known


def test_the_last_lines_of_a_log_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert "empty" in last_lines(log)
    log.write_text("".join(f"line {number}\n\n" for number in range(30)))
    assert last_lines(log, 2) == "    line 28\n    line 29"
