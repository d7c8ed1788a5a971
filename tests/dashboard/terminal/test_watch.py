"""`watch`: a run shown from events.jsonl while it runs, afterwards, resumed, torn, very long, and through a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, fastest, run_cli
from rich.console import Console
from streams import ppo, ppo_values, rounds, run_started, started, until_ppo, whole

from rlhfctl import fs
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.dashboard.state import RunState
from rlhfctl.dashboard.terminal import watch as watching
from rlhfctl.dashboard.terminal.draw import UNICODE
from rlhfctl.dashboard.terminal.screen import Screen
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import from_record
from rlhfctl.paths import RunPaths

FIRST_FRAME_S = 0.5
SLACK = 3.0  # for slow machines
WHOLE_COMMAND_S = 0.7  # processor seconds; measured 0.35


def write(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def page(run: Path, **options: Any) -> str:
    """Return the text that `watch` leaves on an 80 x 24 terminal."""
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)
    watching.watch(run, console, io.StringIO(), **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_finished_run_is_drawn_once(tmp_path: Path) -> None:
    write(tmp_path / "events.jsonl", whole())
    text = page(tmp_path)
    assert "✓ compare 0:08" in text
    assert "\x1b" not in text  # nothing was switched, so nothing need be switched back
    assert len(text.splitlines()) <= 23
    assert page(tmp_path, ascii_only=True).isascii()


def test_a_run_that_was_killed_is_drawn_once_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "events.jsonl", until_ppo())
    text = page(tmp_path)
    assert "stopped after" in text
    assert "its process has ended" in text


def test_whose_lock_it_is_decides_how_long_one_waits(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", until_ppo())
    state, paths = RunState(), RunPaths(tmp_path)
    watching.feed(state, watching.Tail(path).lines())
    just_now = RunState()
    just_now.feed({"event": "note", "stage": "run", "time": time.time(), "message": "just now"})
    with fs.RunLock(paths.lock):
        assert watching.at_work(state, tmp_path) and watching.at_work(just_now, tmp_path)
    assert not watching.at_work(state, tmp_path) and not watching.at_work(just_now, tmp_path)  # killed: said at once
    paths.lock.write_text("process 7 on elsewhere, since 2026-01-01 00:00:00\n")  # it cannot be asked from here
    assert not watching.at_work(state, tmp_path) and watching.at_work(just_now, tmp_path)
    paths.lock.unlink()
    assert not watching.at_work(state, tmp_path) and watching.at_work(just_now, tmp_path)


def test_a_run_of_a_version_that_did_not_say_what_was_due(tmp_path: Path) -> None:
    older = [record for record in whole() if record["event"] != "run_started"]
    write(tmp_path / "events.jsonl", older)
    text = page(tmp_path)
    assert "done after" in text and "stopped" not in text
    (tmp_path / "events.jsonl").unlink()
    write(tmp_path / "events.jsonl", older[:-3])  # killed in its last stage
    text = page(tmp_path)
    assert "stopped after" in text and "its process has ended" in text


def test_a_last_line_that_is_torn_or_only_lacks_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", whole())
    data = path.read_bytes()
    path.write_bytes(data[:-1])  # whole but for its end
    assert "done after" in page(tmp_path)
    path.write_bytes(data[:-20])
    assert "stopped after" in page(tmp_path)


def test_the_tail_gives_each_line_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = watching.Tail(path)
    assert tail.lines() == []  # not there yet
    path.write_bytes(b'{"a": 1}\n{"b"')
    assert (tail.lines(), tail.rest()) == ([b'{"a": 1}'], [b'{"b"'])
    with path.open("ab") as file:
        file.write(b": 2}\n")
    assert (tail.lines(), tail.rest(), tail.lines()) == ([b'{"b": 2}'], [], [])
    path.write_bytes(b"{}\n")  # shorter: another file
    assert (tail.lines(), tail.restarted) == ([b"{}"], True)


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", until_ppo(22))
    with path.open("ab") as file:
        file.write(b'{"event": "metrics", "stage": "ppo", "ti\n')  # what the kill tore, ended by the next writer
    write(path, [run_started(2000.0), started("ppo", 2001.0, 40, resumed_from=20), *ppo(24, first=21, start=2001.0)])
    screen = Screen()
    watching.feed(screen.state, watching.Tail(path).lines())
    assert not screen.state.over
    assert [step for step, _ in screen.state.stages["ppo"].series["kl"].points] == list(range(1, 25))
    assert "resumed from 20" in screen.lines(80, 24, UNICODE, 2050.0)[2].plain


def test_what_is_written_meanwhile_is_shown_until_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.02)
    records = whole()
    now = time.time()
    for record in records:
        record["time"] += now - 1090.0
    path = write(tmp_path / "events.jsonl", records[:100])
    later = threading.Timer(0.2, lambda: write(path, records[100:]))
    with fs.RunLock(tmp_path / ".lock"):
        later.start()
        text = page(tmp_path)
    later.join()
    assert text.rindex("\x1b[?7h") > text.rindex("\x1b[?7l")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    after = text[text.rindex("\x1b[H\x1b[K\r\n\x1b[K\r\n") :]
    assert "✓ compare 0:08" in after


def test_lines_through_a_pipe_are_those_that_run_printed(tiny_run: Path, cli: Cli) -> None:
    result = cli("watch", tiny_run)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert (tiny_run / "stdout.txt").read_text(encoding="utf-8").startswith(result.stdout)


def test_every_record_of_a_run_reads_back_as_the_event_it_was(tiny_run: Path) -> None:
    records = list(read_events(tiny_run / "events.jsonl"))
    assert records[0]["event"] == "run_started"
    assert records[0]["stages"] == ["sft", "reward", "ppo", "compare"]
    for record in records:
        event = from_record(record)
        assert event is not None
        assert json.loads(json.dumps(event.to_record())) == record
    samples = [record for record in records if record["event"] == "sample"]
    assert samples and all(sample["reference_scores"].keys() == sample["scores"].keys() for sample in samples)


def test_a_real_run_is_drawn(tiny_run: Path) -> None:
    text = page(tiny_run)
    assert "done after" in text
    assert "win rate" in text and "reference  " in text


def test_records_from_elsewhere() -> None:
    assert from_record({"event": "of a later version"}) is None
    assert from_record({"event": "note", "stage": "run"}) is None
    event = from_record({"event": "metrics", "stage": "ppo", "time": 1.0, "step": 1, "values": {"kl": None}, "new": 1})
    assert event is not None and str(event.to_record()["values"]["kl"]) == "nan"


def test_nothing_to_watch(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "events.jsonl").touch()
    with pytest.raises(RlhfctlError) as caught:
        page(tmp_path / "none")
    assert "events.jsonl is missing" in str(caught.value) and "other" in str(caught.value)
    result = cli("watch", tmp_path / "none")
    assert result.returncode == 1 and "Traceback" not in result.stderr


def test_a_terminal_that_knows_no_more_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    write(tmp_path / "events.jsonl", whole())
    lines = io.StringIO()
    watching.watch(tmp_path, Console(file=io.StringIO(), force_terminal=True), lines)
    assert lines.getvalue().startswith("[sft] started steps=100\n")


# ---------------------------------------------------------------- a real terminal


def test_ctrl_c_leaves_cleanly(tmp_path: Path) -> None:
    records = until_ppo()
    for record in records:
        record["time"] += time.time() - 1044.0
    write(tmp_path / "events.jsonl", records)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-m", "rlhfctl", "watch", str(tmp_path)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while b"no alarms" not in seen:
        assert select.select([ours], [], [], 60.0)[0], seen
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:
        pass  # the other end is closed
    assert process.wait(timeout=60) == 0
    os.close(ours)
    assert b"Traceback" not in seen
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert b"\x1b[?1049h" not in seen


# ---------------------------------------------------------------- long runs


def long_run(path: Path, count: int) -> Path:
    """Make about `count` events: a long sft, then a PPO that reports each update and was resumed half way."""
    lines = [run_started(), started("sft", 1.0, count // 2)]
    for step in range(1, count // 2):
        common = {"stage": "sft", "time": 1.0 + step, "step": step, "total": count // 2}
        lines.append({"event": "progress", **common, "unit": "step", "eta_s": 1.0})
        if step % 10 == 0:
            lines.append({"event": "metrics", **common, "values": {"loss": 5.0 / step}, "split": "train", "eta_s": 1.0})
    updates = (count - len(lines)) // 2
    for first, last in ((1, updates // 2), (updates // 2 - 3, updates)):
        lines.append(run_started(1e5 + first, ("sft", "reward", "ppo")))
        lines.append(started("ppo", 1e5 + first, updates, resumed_from=first - 1 or None))
        for step in range(first, last + 1):
            common = {"stage": "ppo", "time": 1e5 + step, "step": step, "total": updates}
            lines.append({"event": "progress", **common, "unit": "step", "eta_s": 1.0})
            more = {f"metric_{index}": 0.123456789012345 * step for index in range(12)}
            values = ppo_values(step) | more
            lines.append({"event": "metrics", **common, "values": values, "split": "train", "eta_s": 1.0})
    return write(path, lines)


def test_a_hundred_thousand_events_are_drawn_at_once(tmp_path: Path) -> None:
    path = long_run(tmp_path / "events.jsonl", 100_000)
    assert path.read_bytes().count(b"\n") > 99_000
    times = []
    for _ in range(3):
        began = time.perf_counter()
        screen = Screen()
        watching.feed(screen.state, watching.Tail(path).lines())
        lines = screen.lines(80, 24, UNICODE, 2e5)
        times.append(time.perf_counter() - began)
    assert len(lines) > 12
    print(f"first frame of 100,000 events: {min(times):.3f} s")
    assert min(times) < SLACK * FIRST_FRAME_S
    # The whole command, from the start of Python on: FORCE_COLOR has the screen drawn into a pipe.
    environment = {"FORCE_COLOR": "1", "TERM": "xterm"}
    assert "update " in run_cli("watch", tmp_path, env=environment).stdout
    took = fastest("watch", tmp_path, env=environment)
    print(f"the whole command: {took:.3f} processor seconds")
    assert took < WHOLE_COMMAND_S


def test_a_thinned_run_looks_like_the_whole_one(tmp_path: Path) -> None:
    lines = watching.Tail(long_run(tmp_path / "events.jsonl", 20_000)).lines()
    quick, exact = Screen(), Screen()
    watching.feed(quick.state, lines)
    for record in watching.records(lines):
        exact.state.feed(record)
    assert len(watching._thinned(lines)) < 1.2 * watching.PARSED_AT_MOST < len(lines)
    for width, height in ((80, 24), (200, 60)):
        ours, theirs = ([line.plain for line in s.lines(width, height, UNICODE, 2e5)] for s in (quick, exact))
        assert ours[:4] == theirs[:4]
        numbers = slice(0, 36)  # names, numbers and trends; a chart may differ in a cell
        assert [line[numbers] for line in ours] == [line[numbers] for line in theirs]
    assert quick.state.alarms() == exact.state.alarms()
    assert quick.state.stages["ppo"].series["score"].first == exact.state.stages["ppo"].series["score"].first


def test_a_thinned_run_of_many_rounds_still_knows_every_stage(tmp_path: Path) -> None:
    lines = watching.Tail(write(tmp_path / "events.jsonl", rounds(100, until="ppo"))).lines()
    state = RunState()
    watching.feed(state, lines)
    assert len(lines) > 8 * watching.PARSED_AT_MOST
    assert [state.stages[name].state for name in state.order] == ["done"] * 398 + ["now"] + ["next"] * 9


def test_very_many_restarts_do_not_make_it_slow(tmp_path: Path) -> None:
    records = []
    for attempt in range(2_000):
        records += [run_started(attempt * 10.0), started("sft", attempt * 10.0 + 1, 100)]
        records += [
            {"event": "progress", "stage": "sft", "time": attempt * 10.0 + 2, "step": step, "total": 100}
            for step in range(20)
        ]
    lines = watching.Tail(write(tmp_path / "events.jsonl", records)).lines()
    assert len(watching._thinned(lines)) < 4 * watching.PARSED_AT_MOST < len(lines)


def test_a_reader_who_has_read_enough_is_no_error(tmp_path: Path) -> None:
    said = {"event": "note", "stage": "run", "time": 1.0, "message": "x" * 400}
    write(tmp_path / "events.jsonl", [said] * 1000)  # more than a pipe holds
    command = f"{sys.executable} -m rlhfctl watch {tmp_path} | head -c 10; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1].endswith("141")
