"""Events on a terminal: the whole screen while the run is at work, and a few lines that stay when it is over.

Writes to the console it is given, on the terminal's one page: what stood there is scrolled up, and a kill leaves the
last frame. What was said meanwhile (stages that finished, warnings, notes, what others printed) is kept and printed in
the frame's place at the end. Reads nothing. The picture itself is screen.py's.
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

REFRESHES_A_SECOND = 2  # more would take time from the training beside it, and nothing changes faster
_ANSWER_S = 1.0  # of the drawing thread, when it is to end
_SAID = 500  # messages kept for the end; the file of events has them all
_NAME_WIDTH = 8  # "compare" and a space
_GAP = "  "
_HOME, _ERASE_ROW, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
# A frame is shown when it is whole (where the terminal knows how), without the cursor's travels, and a sign wider than
# rich believes is cut at the edge instead of wrapped; after it all is as usual.
_BEGIN, _END = "\x1b[?2026h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?2026l"


class FullScreen:
    """A context manager: inside it a screen is drawn over the whole terminal twice a second.

    What stood there is scrolled up, where one finds it again, and between two frames the terminal is as any program
    expects it: one that is killed (out of memory, say) leaves its last frame and a terminal that works. Afterwards the
    frame is gone.
    """

    def __init__(self, console: Console, screen: Screen, signs: Signs) -> None:
        self.console = console
        self.screen = screen
        self.signs = signs
        self.lock = threading.RLock()  # the screen is drawn by a thread, and fed by another
        self._pen = threading.RLock()
        self._height = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def draw(self) -> None:
        """Draw one frame and write it in one go. The last line of the terminal stays free for the cursor."""
        with self._pen:
            width, height = self.console.size
            with self.lock:  # not while it is written: a terminal that is halted (Ctrl-S) must not halt training
                lines = self.screen.lines(width, height - 1, self.signs, time.time())
            with self.console.capture() as capture:
                self.console.print(Text("\n").join(lines), no_wrap=True, overflow="crop", end="")
            rows = [_ERASE_ROW + row + "\r\n" for row in capture.get().split("\n")]
            # A terminal that grew has brought lines back from above: they go up again before the frame is drawn.
            up = f"\x1b[{height};1H" + "\n" * (height - self._height) if height > self._height else ""
            self._height = height
            self._write("".join((_BEGIN, up, _HOME, *rows, _ERASE_BELOW, _END)))

    def __enter__(self) -> FullScreen:
        with _undisturbed():
            self._height = self.console.height
            self._write("\n" * (self._height - 1))
            self.draw()
            self._thread = threading.Thread(target=self._redraw, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with _undisturbed():
            self._over.set()
            if self._thread is not None:
                self._thread.join(timeout=_ANSWER_S)  # it may wait for a lock of whom SIGTERM interrupted
            # Row by row: terminals (tmux) keep in their history what is erased from the top in one go.
            self._write(_HOME + "\r\n".join([_ERASE_ROW] * self.console.height) + _HOME)

    def _redraw(self) -> None:
        while not self._over.wait(1 / REFRESHES_A_SECOND):
            self.draw()

    def _write(self, code: str) -> None:
        self.console.file.write(code)
        self.console.file.flush()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block: a half-drawn terminal could not be given back."""
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
    """A listener for terminals, and a context manager: inside it the screen is shown.

    An exception, Ctrl-C and SIGTERM give the terminal back with what was said. `history` are the run's records of
    before: they tell how long stages take, and a resumed stage keeps its chart.
    """

    def __init__(
        self, console: Console, history: Iterable[Mapping[str, Any]] = (), *, signs: Signs | None = None
    ) -> None:
        self.console = console
        self.signs = signs_for(console, dict(os.environ)) if signs is None else signs
        self.screen = Screen()
        for record in history:
            self.screen.state.feed(record)
        self.screen.state.warnings.clear()  # of earlier attempts
        self._full = FullScreen(console, self.screen, self.signs)
        self._said: deque[RenderableType] = deque(maxlen=_SAID)
        self._stray = io.StringIO()  # what others print while the terminal is ours
        self._inside: contextlib.ExitStack | None = None
        self._sigterm: Any = None

    def start(self) -> None:
        """Take the terminal."""
        ends_at_once = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # else who handles it leaves this block
        if ends_at_once and threading.current_thread() is threading.main_thread():
            self._sigterm = signal.signal(signal.SIGTERM, self._terminate)
        with contextlib.ExitStack() as inside:
            inside.enter_context(contextlib.redirect_stdout(self._stray))
            inside.enter_context(contextlib.redirect_stderr(self._stray))
            inside.enter_context(self._full)
            self._inside = inside.pop_all()

    def stop(self) -> None:
        """Give the terminal back and print what was said, then the stages and the alarms that hold."""
        if self._inside is None:
            return
        with _undisturbed():
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
        """Keep one message for the end. A long message wraps under itself, not under the stage's name."""
        line = Table.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(width=max(_NAME_WIDTH - 1, cell_len(stage)), no_wrap=True)
        line.add_column(overflow="fold")
        body = "" if style == "green" else style  # colour marks that a stage is over; its numbers stay readable
        line.add_row(Text(mark, style), Text(visible(stage), style), Text(message, body))
        self._said.append(line)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        """Give the terminal back on SIGTERM, which ends a process at once: kept messages must not be lost."""
        self.stop()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _labelled(stage: str, values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the stage's key metrics, or others if it has none, as (short name, text)."""
    known = {metric.name: metric.label or metric.name for metric in ranked(stage, "screen") if metric.name in values}
    names = known or {name: visible(name) for name in chosen_metrics(stage, values)}
    return [(label, short(values[name])) for name, label in names.items()]
