"""`rlhfctl watch RUN`: show the screen of a run from another terminal, while it is at work or afterwards.

Reads `events.jsonl`, and checks the run's lock file to see whether its process still lives. Writes to its console: the
screen on a terminal, plain lines elsewhere. Changes nothing in the run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from rlhfctl import fs
from rlhfctl.dashboard.jsonl import records
from rlhfctl.dashboard.series import RECENT
from rlhfctl.dashboard.state import KEPT_STAGES, RunState
from rlhfctl.dashboard.terminal.console import console as standard_console
from rlhfctl.dashboard.terminal.draw import Signs, signs_for
from rlhfctl.dashboard.terminal.plain import PlainPrinter
from rlhfctl.dashboard.terminal.screen import Screen
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import from_record
from rlhfctl.paths import EVENTS, LOCK

LOOK_EVERY_S = 0.5
_CTRL_C_CHECK_S = 0.1  # most seconds until Ctrl-C is noticed
SILENT_S = 60.0  # after its last event a run whose lock cannot be checked (another machine) counts as at work so long
PARSED_AT_MOST = 1_000  # lines parsed of a long file: a screen shows no more
_ATTEMPTS = 200  # groups of lines from earlier starts that are read, in a run that was started very often
_START = b'{"event": "started"'
_NEWEST = (b'{"event": "run_started"', b'{"event": "finished"')
# Bytes at the start of a line that hold `event` and `stage`, and bytes at its end that hold `split`.
_KIND_AT_MOST, _TAIL = 120, 120
_WORKING = b'{"event": "working"'
_SPARSE = (b'{"event": "metrics"', b'{"event": "checkpoint"', b'{"event": "sample"', _WORKING)
_EVENT = slice(11, 19)  # position of the first eight letters of an event's name
_LAST_PROGRESS = 64  # newest progress lines: they give the current step and the pace
_LAST_WORK = 16  # newest work lines per stage: earlier work is over
_GONE = "its process has ended; the same command resumes from the last complete checkpoint"


class Tail:
    """Read the whole lines of a growing file as they come. A replaced file is read anew and sets `restarted`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarted = False
        self._offset = 0
        self._torn = b""  # the beginning of a line that is still being written
        self._identity: tuple[int, int] | None = None

    def lines(self) -> list[bytes]:
        """Return the lines written since the last call."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if self._identity not in (None, identity) or status.st_size < self._offset:
                    self.restarted, self._offset, self._torn = True, 0, b""
                self._identity = identity
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._torn = (self._torn + data if self._torn else data).split(b"\n")
        return lines

    def rest(self) -> list[bytes]:
        """Return the last line if it has no line end yet. It may be torn while somebody still writes."""
        return [self._torn] if self._torn else []


def watch(
    run: Path,
    console: Console | None = None,
    stream: TextIO | None = None,
    *,
    follow: bool = False,
    ascii_only: bool = False,
) -> None:
    """Show a run until it is over or Ctrl-C is pressed; with `follow`, until Ctrl-C.

    None for `console` or `stream` means standard output. RlhfctlError if there is no run, unless `follow`.
    """
    if not (run / EVENTS).is_file() and not follow:
        near = sorted(path.parent.name for path in run.parent.glob(f"*/{EVENTS}")) if run.parent.is_dir() else []
        raise RlhfctlError(
            f"there is nothing to watch here: {EVENTS} is missing",
            where=str(run),
            fix=f"runs beside it: {', '.join(near)}" if near else "start one: rlhfctl run quickstart",
        )
    console = standard_console() if console is None else console
    if console.is_terminal and not console.is_dumb_terminal:
        _on_screen(run, console, signs_for(console, dict(os.environ), ascii_only=ascii_only), follow)
    else:
        _as_lines(run, sys.stdout if stream is None else stream, follow)


def _on_screen(run: Path, console: Console, signs: Signs, follow: bool) -> None:
    tail, state = Tail(run / EVENTS), RunState()
    feed(state, tail.lines())
    if follow or at_work(state, run):
        from rlhfctl.dashboard.terminal.live import FullScreen

        with _until_ctrl_c() as asked, FullScreen(console, Screen(state), signs) as full:
            while not asked() and (follow or at_work(state, run)):
                _pause(asked)
                with full.lock:
                    lines = tail.lines()
                    if tail.restarted:
                        tail.restarted, state = False, RunState()
                        full.screen = Screen(state)
                    feed(state, lines)
    feed(state, tail.rest())
    _stop_if_gone(state, run)
    now = time.time() if at_work(state, run) else state.last or 0.0
    for line in Screen(state).lines(console.width, max(8, console.height - 1), signs, now):
        console.print(line, no_wrap=True, overflow="crop")


def _as_lines(run: Path, stream: TextIO, follow: bool) -> None:
    """Print the same lines that `run` prints into a pipe."""
    tail, state, printer = Tail(run / EVENTS), RunState(), PlainPrinter(stream)

    def show(lines: Iterable[bytes]) -> None:
        for record in records(lines):
            state.feed(record)
            if (event := from_record(record)) is not None:
                printer(event)

    with _until_ctrl_c() as asked:
        show(tail.lines())
        while not asked() and (follow or at_work(state, run)):
            _pause(asked)
            show(tail.lines())
        if not asked():
            show(tail.rest())


@contextmanager
def _until_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed. Ctrl-C raises nothing, so no frame is cut off."""
    asked = False

    def note(signum: int, frame: object) -> None:
        nonlocal asked
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _pause(asked: Callable[[], bool]) -> None:
    end = time.monotonic() + LOOK_EVERY_S
    while not asked() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _CTRL_C_CHECK_S))


def at_work(state: RunState, run: Path) -> bool:
    """Tell whether more events will come: the run is not over, and its process lives.

    If its lock cannot be checked, a run with an event in the last SILENT_S seconds counts as alive.
    """
    if state.over:
        return False
    held = fs.is_locked(run / LOCK)
    return state.last is not None and time.time() - state.last < SILENT_S if held is None else held


def _stop_if_gone(state: RunState, run: Path) -> None:
    """Mark the run as stopped if its process has ended."""
    if not at_work(state, run):
        state.no_more_comes(_GONE)


def history(events: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's earlier attempts that a screen needs."""
    lines = Tail(events).lines()
    return _worth_parsing(lines)


def feed(state: RunState, lines: list[bytes]) -> None:
    """Feed lines of `events.jsonl` to a state. Lines of a long file that a screen cannot show are not parsed."""
    for record in _worth_parsing(lines):
        state.feed(record)


def _worth_parsing(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    return records(_thinned(lines) if len(lines) > PARSED_AT_MOST else lines)


def _thinned(lines: list[bytes]) -> list[bytes]:
    """Choose the lines that a screen can show: each stage's end, some metrics and samples, the newest progress.

    Lines are grouped by their beginnings, which the writer always gives the same order (`event`, `stage`, `time`), so
    most need not be parsed. Each start of a stage begins new groups, so that old lines do not push out new ones.
    """
    kept: list[int] = []
    earlier: list[list[int]] = []
    groups: dict[bytes, list[int]] = {}
    newest: dict[bytes, int] = {}  # kind -> index of the run's last start and of each stage's last end
    for index, line in enumerate(lines):
        if line[_EVENT] == b"progress":
            continue
        kind = line[: line.find(b', "time": ', 0, _KIND_AT_MOST)]
        if kind[_EVENT] == b'metrics"' and b'"split": "eval"' in line[-_TAIL:]:
            kind += b"eval"
        indices = groups.get(kind)
        if indices is not None:
            indices.append(index)
        elif line.startswith(_SPARSE):
            groups[kind] = [index]
        else:
            kept.append(index)
            if line.startswith(_START):
                earlier += groups.values()
                groups = {}
            elif line.startswith(_NEWEST):
                newest[kind] = index
    del earlier[:-_ATTEMPTS]
    share = PARSED_AT_MOST // max(1, len(earlier) + len(groups))
    chosen = {*_spread(kept, PARSED_AT_MOST), *list(newest.values())[-KEPT_STAGES:]}
    for indices in earlier:
        chosen.update(_spread(indices, max(4, share)))
    for kind, indices in groups.items():
        last = indices[-_LAST_WORK:] if kind.startswith(_WORKING) else indices
        chosen.update(_spread(last, max(4 * RECENT, share)))
    progress = (index for index in range(len(lines) - 1, -1, -1) if lines[index][_EVENT] == b"progress")
    chosen.update(islice(progress, _LAST_PROGRESS))
    return [lines[index] for index in sorted(chosen)]


def _spread(indices: list[int], most: int) -> list[int]:
    """Choose at most `most` indices: a quarter from the start, half from the end, the others evenly in between."""
    if len(indices) <= most:
        return indices
    head, tail = max(1, most // 4), max(1, most // 2)
    between = indices[head:-tail]
    count = max(0, most - head - tail)
    return indices[:head] + [between[i * len(between) // count] for i in range(count)] + indices[-tail:]
