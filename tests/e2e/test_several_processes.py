"""Whole runs in several processes: one process's numbers, a process that dies, signals, and two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, run_cli
from namespaces import refused, two_machines
from rank_kills import Numbers, Started, begin, ended_well, farthest, kill_one, numbers

from rlhfctl.artifacts import load_artifact

CAMPAIGNS = Path(__file__).resolve().parents[1] / "campaigns"
CLOSE = 1e-4
EARLY = 4  # updates
LONGEST_S = 300.0


LONGER = ("--until", "ppo", "--set", "ppo.total_episodes=320", "--set", "ppo.learning_rate=1e-3")  # 20 updates


def without_ppo(run: Path, folder: Path) -> Path:
    """A copy of a finished run before its PPO, with its recipe beside it."""
    copy = folder / "run"
    shutil.copytree(run, copy)
    for name in ("ppo", "compare"):
        shutil.rmtree(copy / name, ignore_errors=True)
    (copy / "events.jsonl").unlink()
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def alone(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """The numbers of the longer PPO in one process."""
    folder = tmp_path_factory.mktemp("alone")
    run = without_ppo(tiny_run, folder)
    result = run_cli("run", folder / "tiny.yaml", "--run-dir", run, *LONGER)
    assert result.returncode == 0, result.stderr
    return numbers(run)


def early(found: Numbers) -> Numbers:
    """The metrics of the first updates: later a draw on a border may fall the other way, because rounding differs."""
    return {key: values for key, values in found.items() if key[1] <= EARLY and (key[2] == "train" or key[1] == 0)}


def until_update(started: Started, run: Path, update: int) -> None:
    """Wait until the metrics of an update of PPO are out."""
    until = time.monotonic() + LONGEST_S
    said = f'"step": {update}, "values"'
    while time.monotonic() < until and started.processes[0].poll() is None:
        events = run / "events.jsonl"
        if events.is_file() and any('"metrics", "stage": "ppo"' in line and said in line for line in events.open()):
            return
        time.sleep(0.02)
    pytest.fail(f"update {update} has not come: {started.processes[0].poll()}")


@pytest.mark.ci
def test_three_processes_make_the_run_of_one(tiny_run: Path, tmp_path: Path) -> None:
    """Batches of 8 and 16 rows do not divide by three."""
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    run = tmp_path / "run"
    result = run_cli("run", tmp_path / "tiny.yaml", "--run-dir", run, "--num-processes", 3)
    assert result.returncode == 0, result.stderr
    assert farthest(numbers(run), numbers(tiny_run)) < CLOSE
    for stage in ("sft", "reward", "ppo"):
        made, alone = load_artifact(run / stage), load_artifact(tiny_run / stage)
        assert made.manifest.inputs.keys() == alone.manifest.inputs.keys()
        assert made.manifest.inputs["section"] == alone.manifest.inputs["section"]
        assert {path.name for path in made.path.iterdir()} == {path.name for path in alone.path.iterdir()}
    started = [json.loads(line) for line in (run / "events.jsonl").open() if '"event": "started"' in line]
    assert [event["settings"].get("processes") for event in started if event["stage"] in ("sft", "reward", "ppo")] == [
        3, 3, 3,
    ]  # fmt: skip
    again = run_cli("run", tmp_path / "tiny.yaml", "--run-dir", run)  # in one process: nothing runs again
    assert again.returncode == 0 and "superseded" not in {path.name for path in run.iterdir()}
    assert again.stdout.count("skipped: unchanged") == 4


@pytest.mark.ci
def test_a_process_that_dies_ends_all_and_the_run_goes_on_in_one(
    alone: Numbers, tiny_run: Path, tmp_path: Path
) -> None:
    run = without_ppo(tiny_run, tmp_path)
    started = begin(tmp_path / "tiny.yaml", run, ["--num-processes", "2", *LONGER])
    until_update(started, run, 3)
    killed = kill_one(started, max)
    assert killed == 1
    assert ended_well(started, killed, time.monotonic()) == []
    result = run_cli("run", tmp_path / "tiny.yaml", "--run-dir", run, *LONGER)
    assert result.returncode == 0, result.stderr
    assert "resumed_from=" in result.stdout
    found = numbers(run)
    assert found.keys() == alone.keys() and farthest(early(found), early(alone)) < CLOSE


@pytest.mark.ci
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes(sent: signal.Signals, code: int, tiny_run: Path, tmp_path: Path) -> None:
    run = without_ppo(tiny_run, tmp_path)
    started = begin(tmp_path / "tiny.yaml", run, ["--num-processes", "2", *LONGER])
    until_update(started, run, 1)
    started.processes[0].send_signal(sent)
    (ended, said), *_ = started.wait(60)
    assert ended == code, said
    assert "Traceback" not in said
    until = time.monotonic() + 10
    while started.all() and time.monotonic() < until:
        time.sleep(0.05)
    assert started.all() == {}


@pytest.mark.ci
def test_processes_end_with_the_command_that_is_killed(tiny_run: Path, tmp_path: Path) -> None:
    run = without_ppo(tiny_run, tmp_path)
    started = begin(tmp_path / "tiny.yaml", run, ["--num-processes", "2", *LONGER])
    until_update(started, run, 1)
    started.processes[0].kill()
    until = time.monotonic() + 30
    while started.all() and time.monotonic() < until:
        time.sleep(0.05)
    assert started.all() == {}


@pytest.mark.ci
@pytest.mark.parametrize("shared", [False, True])
def test_two_machines_finish_a_run(shared: bool, alone: Numbers, tiny_run: Path, tmp_path: Path) -> None:
    if (why := refused()) is not None:
        pytest.skip(why)
    run = without_ppo(tiny_run, tmp_path)
    with two_machines() as machines:
        options = ["--num-processes", "2", *LONGER]
        ended = begin(tmp_path / "tiny.yaml", run, options, machines, shared).wait(LONGEST_S)
    assert [code for code, _ in ended] == [0, 0], ended
    found = numbers(run)
    assert found.keys() == alone.keys() and farthest(early(found), early(alone)) < CLOSE
    assert not (tmp_path / "run-other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_two_and_three_processes_give_the_metrics_of_one_on_the_quickstart(critic: str, tmp_path: Path) -> None:
    """Over three updates; sft and reward of the quickstart are made once for all critics.

    Of the evaluations only the first is compared: later the weights differ by rounding, and a draw on a border may fall
    the other way (one response of 100 with critic: model).
    """
    base = tmp_path.parent / "quickstart-base"
    if not (base / "reward" / "manifest.json").is_file():
        assert run_cli("run", "quickstart", "--until", "reward", "--run-dir", base).returncode == 0
    found = {}
    for count in (1, 2, 3):
        run = tmp_path / str(count)
        shutil.copytree(base, run)
        options = ["--set", f"ppo.critic={critic}", "--set", "ppo.total_episodes=192", "--num-processes", count]
        result = run_cli("run", "quickstart", "--from", "ppo", "--until", "ppo", "--run-dir", run, *options)
        assert result.returncode == 0, result.stderr
        kept = {key: values for key, values in numbers(run).items() if key[0] == "ppo"}
        found[count] = {key: values for key, values in kept.items() if key[2] == "train" or key[1] == 0}
        assert len(found[count]) == 1 + 3
    assert farthest(found[2], found[1]) < CLOSE and farthest(found[3], found[1]) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_killing_any_process_at_five_moments(machines: int, tmp_path: Path) -> None:
    if machines == 2 and (why := refused()) is not None:
        pytest.skip(why)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    command = [sys.executable, str(CAMPAIGNS / "rank_kills.py"), str(tmp_path / "tiny.yaml"), "--kills", "5"]
    command += ["--machines", str(machines)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 passed, 0 failed" in result.stdout
