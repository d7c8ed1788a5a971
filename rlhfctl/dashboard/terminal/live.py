"""Show a run full-screen on a terminal while it is at work, and print a few lines that stay when it is over.

Writes to its console, on the terminal's main page: earlier lines are scrolled up, and a killed process leaves its last
frame. Messages that come meanwhile (finished stages, warnings, notes, output of other code) are kept and printed at the
end in place of the frame. Reads nothing. Leaves out the picture itself (screen.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl.dashboard.terminal.draw import Signs, signs_for
from rlhfctl.dashboard.terminal.plain import chosen_metrics
from rlhfctl.dashboard.terminal.screen import Screen
from rlhfctl.dashboard.text import duration, one_line, short, visible
from rlhfctl.events import Event, Note, StageFinished, StageStarted, Warned
from rlhfctl.metrics import ranked

REFRESHES_PER_SECOND = 2  # more would slow the training in the same process, and nothing changes faster
_JOIN_TIMEOUT_S = 1.0  # for the drawing thread to end
_MESSAGES_KEPT = 500  # for the end; events.jsonl has all of them
_NAME_WIDTH = 8  # "compare" and a space
_GAP = "  "
_HOME, _ERASE_ROW, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
# Escape codes around a frame. Mode 2026 makes terminals that know it show only whole frames, mode 25 hides the cursor,
# and mode 7 turns line wrapping off: a character wider than rich assumes is cut at the edge.
_BEGIN, _END = "\x1b[?2026h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?2026l"


class FullScreen:
    """Draw a screen over the whole terminal twice per second while inside this context manager.

    Earlier lines are scrolled up and can be found there. Between two frames the terminal is in its normal mode, so a
    process that is killed (out of memory, for example) leaves its last frame and a usable terminal. At the end the
    frame is erased.
    """

    def __init__(self, console: Console, screen: Screen, signs: Signs) -> None:
        self.console = console
        self.screen = screen
        self.signs = signs
        self.lock = threading.RLock()  # one thread draws the screen, another feeds it events
        self._pen = threading.RLock()
        self._height = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def draw(self) -> None:
        """Draw one frame and write it in one go. The last line of the terminal stays free for the cursor."""
        with self._pen:
            width, height = self.console.size
            with self.lock:  # released before writing: a terminal halted by Ctrl-S must not halt training
                lines = self.screen.lines(width, height - 1, self.signs, time.time())
            with self.console.capture() as capture:
                self.console.print(Text("\n").join(lines), no_wrap=True, overflow="crop", end="")
            rows = [_ERASE_ROW + row + "\r\n" for row in capture.get().split("\n")]
            # A terminal that grows scrolls earlier lines back in: scroll them up again before the frame is drawn.
            up = f"\x1b[{height};1H" + "\n" * (height - self._height) if height > self._height else ""
            self._height = height
            self._write("".join((_BEGIN, up, _HOME, *rows, _ERASE_BELOW, _END)))

    def __enter__(self) -> FullScreen:
        with _signals_delayed():
            self._height = self.console.height
            self._write("\n" * (self._height - 1))
            self.draw()
            self._thread = threading.Thread(target=self._redraw, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with _signals_delayed():
            self._over.set()
            if self._thread is not None:
                # The thread may wait for a lock that is held by the code that SIGTERM interrupted.
                self._thread.join(timeout=_JOIN_TIMEOUT_S)
            # Erase row by row: tmux keeps in its history a screen that is erased at once from the top.
            self._write(_HOME + "\r\n".join([_ERASE_ROW] * self.console.height) + _HOME)

    def _redraw(self) -> None:
        while not self._over.wait(1 / REFRESHES_PER_SECOND):
            self.draw()

    def _write(self, code: str) -> None:
        self.console.file.write(code)
        self.console.file.flush()


@contextlib.contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block, because a half-drawn terminal cannot be restored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    wait = (signal.SIGINT, signal.SIGTERM)
    before = [(number, signal.signal(number, lambda signum, frame: asked.append(signum))) for number in wait]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        if asked:
            signal.raise_signal(asked[0])


class LivePrinter:
    """Show events on a full screen while inside this context manager. It is a listener.

    An exception, Ctrl-C or SIGTERM restores the terminal and prints the kept messages. `history` holds the records of
    the run's earlier attempts: they tell how long stages take, and a resumed stage keeps its chart.
    """

    def __init__(
        self, console: Console, history: Iterable[Mapping[str, Any]] = (), *, signs: Signs | None = None
    ) -> None:
        self.console = console
        self.signs = signs_for(console, dict(os.environ)) if signs is None else signs
        self.screen = Screen()
        for record in history:
            self.screen.state.feed(record)
        self.screen.state.warnings.clear()  # drop those of earlier attempts
        self._full = FullScreen(console, self.screen, self.signs)
        self._said: deque[RenderableType] = deque(maxlen=_MESSAGES_KEPT)
        self._stray = io.StringIO()  # output of other code while the screen is shown
        self._inside: contextlib.ExitStack | None = None
        self._sigterm: Any = None

    def start(self) -> None:
        """Show the screen and redirect other output into memory."""
        ends_at_once = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # other handlers raise and leave the block
        if ends_at_once and threading.current_thread() is threading.main_thread():
            self._sigterm = signal.signal(signal.SIGTERM, self._terminate)
        with contextlib.ExitStack() as inside:
            inside.enter_context(contextlib.redirect_stdout(self._stray))
            inside.enter_context(contextlib.redirect_stderr(self._stray))
            inside.enter_context(self._full)
            self._inside = inside.pop_all()

    def stop(self) -> None:
        """Restore the terminal, then print the kept messages, the stages and the alarms that hold."""
        if self._inside is None:
            return
        with _signals_delayed():
            inside, self._inside = self._inside, None
            inside.close()
            if self._sigterm is not None:
                signal.signal(signal.SIGTERM, self._sigterm)
            self.print_said()
            now = self.screen.state.last if self.screen.state.last is not None else time.time()
            for line in self.screen.summary(self.console.width, self.signs, now):
                self.console.print(line, no_wrap=True, overflow="crop")

    def print_said(self) -> None:
        """Print the messages kept so far on the console, once."""
        if stray := self._stray.getvalue().strip():
            self.console.print(Text(visible(stray, newlines=True), "dim"))
        for said in self._said:
            self.console.print(said)
        self._said.clear()
        self._stray.seek(0)
        self._stray.truncate()

    def __enter__(self) -> LivePrinter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __call__(self, event: Event, /) -> None:
        with self._full.lock:
            self.screen.state.feed(event.to_record())
        match event:
            case StageStarted(resumed_from=int()):
                self._say(" ", event.stage, f"resumes from step {event.resumed_from}", "dim")
            case Warned():
                self._say("!", event.stage, one_line(event.message), "magenta")
            case Note():
                self._say(" ", event.stage, one_line(event.message), "dim")
            case StageFinished():
                self._finished(event)
            case _:
                pass

    def _finished(self, event: StageFinished) -> None:
        path = visible(event.path)
        if event.skipped:
            self._say("-", event.stage, f"skipped: already complete in {path}", "dim")
            return
        pairs = _labelled(event.stage, event.metrics)[:4]
        parts = [f"finished in {duration(event.seconds)}", *(f"{name} {value}" for name, value in pairs), path]
        self._say(self.signs.done, event.stage, _GAP.join(parts), "green")

    def _say(self, mark: str, stage: str, message: str, style: str) -> None:
        """Keep one message for the end. A long message wraps in its own column, beside the stage's name."""
        line = Table.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(width=max(_NAME_WIDTH - 1, cell_len(stage)), no_wrap=True)
        line.add_column(overflow="fold")
        body = "" if style == "green" else style  # only the stage's name is green: numbers stay readable
        line.add_row(Text(mark, style), Text(visible(stage), style), Text(message, body))
        self._said.append(line)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        """Restore the terminal on SIGTERM before the process ends, so that no kept message is lost."""
        self.stop()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _labelled(stage: str, values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the stage's key metrics, or others if it has none, as (short name, text)."""
    known = {metric.name: metric.label or metric.name for metric in ranked(stage, "screen") if metric.name in values}
    names = known or {name: visible(name) for name in chosen_metrics(stage, values)}
    return [(label, short(values[name])) for name, label in names.items()]
