"""The screen during `run`: it is shown, and at the end the terminal is restored and all messages are printed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading

import pytest
from rich.cells import cell_len
from rich.console import Console
from streams import whole

from rlhfctl.dashboard.terminal.live import LivePrinter
from rlhfctl.events import (
    CheckpointSaved,
    Metrics,
    Note,
    Progress,
    RunStarted,
    Sample,
    StageFinished,
    StageStarted,
    Warned,
)

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
SECOND_PAGE, HOME, ERASE = "\x1b[?1049h", "\x1b[H", "\x1b[K"


def terminal(width: int = 80, *, escapes: bool = False) -> Console:
    """Make a console that writes to memory: with `escapes` as to a terminal, else as plain text."""
    return Console(file=io.StringIO(), width=width, height=24, force_terminal=escapes, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def left(text: str) -> str:
    """Return the text that stays after the frame is erased."""
    gone = text[text.rindex(HOME) + len(HOME) :]
    assert not gone.startswith(ERASE)  # as a frame does
    return gone


def said(printer: LivePrinter) -> list[str]:
    printer.print_said()
    return [line.rstrip() for line in written(printer.console).splitlines()]


def test_the_screen_shows_what_the_events_say() -> None:
    console = terminal(escapes=True)
    with LivePrinter(console) as printer:
        printer(RunStarted(stage="run", name="quickstart", stages=["ppo", "compare"]))
        printer(StageStarted(stage="ppo", total_steps=40))
        printer(Metrics(stage="ppo", step=25, total=40, eta_s=30, values={"score": 0.4123}))
        printer._full.draw()
        text = written(console)
    assert text.startswith("\n" * 23) and SECOND_PAGE not in text  # what stood there is scrolled up, not hidden
    assert "▸ ppo 25/40 ─ · compare" in text
    assert "0.412" in text
    assert "update 25/40" in left(written(console))  # what is left stands in the frame's place


def test_what_was_said_is_kept_with_markup_taken_literally() -> None:
    printer = LivePrinter(terminal())
    printer(Warned(stage="sft", message="[red]hot[/red] :smile: \x1b[31m"))
    printer(Note(stage="run", message="[/] a note"))
    printer(StageStarted(stage="sft", resumed_from=4))
    printer(StageFinished(stage="sft", path="runs/[x]/sft", seconds=53, metrics={"loss": 1.9213}))
    printer(StageFinished(stage="reward", path="runs/x/reward", seconds=0, skipped=True))
    printer(Sample(stage="ppo", step=1, prompt="p", response="r"))
    printer(CheckpointSaved(stage="ppo", step=1, path="p"))
    assert said(printer) == [
        "! sft     [red]hot[/red] :smile: \\x1b[31m",
        "  run     [/] a note",
        "  sft     resumes from step 4",
        "✓ sft     finished in 0:53  loss 1.92  runs/[x]/sft",
        "- reward  skipped: already complete in runs/x/reward",
    ]


def test_a_long_message_wraps_under_itself() -> None:
    printer = LivePrinter(terminal(60))
    printer(Note(stage="run", message="word " * 30))
    lines = said(printer)
    assert len(lines) > 2
    assert all(line.startswith(" " * 10 + "word") for line in lines[1:])
    assert all(cell_len(line) <= 60 for line in lines)


def test_what_others_print_meanwhile_is_kept() -> None:
    console = terminal(escapes=True)
    with LivePrinter(console):
        print("from a library \x1b[2J")
        print("to stderr", file=sys.stderr)
    text = written(console)
    assert "from a library \\x1b[2J" in left(text)
    assert "to stderr" in left(text)


def test_an_exception_gives_the_terminal_back_with_all_that_was_said() -> None:
    console = terminal(escapes=True)
    with pytest.raises(KeyboardInterrupt), LivePrinter(console) as printer:
        printer(StageStarted(stage="ppo", total_steps=40))
        printer(Progress(stage="ppo", step=25, total=40))
        printer(Warned(stage="ppo", message="careful"))
        raise KeyboardInterrupt
    text = written(console)
    after = left(text)
    assert HIDE not in after and NO_WRAP not in after
    assert after.index("careful") < after.index("update 25/40")
    assert after.endswith("\n") and not after.endswith("\n\n")


def test_what_is_left_of_a_run_that_is_over() -> None:
    console = terminal(escapes=True)
    with LivePrinter(console) as printer:
        printer(RunStarted(stage="run", name="quickstart", stages=["sft"]))
        printer(StageStarted(stage="sft", total_steps=2))
        printer(Progress(stage="sft", step=2, total=2))
        printer(StageFinished(stage="sft", path="runs/x/sft", seconds=1))
    lines = [line.rstrip() for line in left(written(console)).splitlines()]
    assert lines[0].endswith("✓ sft     finished in 0:01  runs/x/sft")
    assert lines[1].startswith("quickstart") and lines[1].endswith("done after 0:00")
    assert lines[2:] == ["✓ sft 0:01"]


def test_earlier_attempts_tell_how_long_stages_take_and_their_warnings_are_over() -> None:
    printer = LivePrinter(terminal(), [*whole(), {"event": "warning", "stage": "sft", "time": 1.0, "message": "old"}])
    printer(RunStarted(stage="run", name="quickstart", stages=["ppo", "compare"]))
    printer(StageStarted(stage="ppo", total_steps=40, resumed_from=20))
    printer(Progress(stage="ppo", step=21, total=40, eta_s=38))
    assert printer.screen.state.time_left(printer.screen.state.last or 0.0) == "time left about 0:46"
    assert printer.screen.state.stages["ppo"].series["score"].step == 20
    assert not printer.screen.state.warnings


def test_an_ascii_terminal_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80, height=24, force_terminal=True)
    with LivePrinter(console) as printer:
        printer(StageStarted(stage="sft", total_steps=3))
        printer(StageFinished(stage="sft", path="p", seconds=1))
    console.file.flush()
    assert raw.getvalue().isascii() and b"* " in raw.getvalue()
    monkeypatch.setenv("RLHFCTL_ASCII", "1")
    assert LivePrinter(terminal()).signs.ascii


PROGRAM = """
import os, signal, sys
from rich.console import Console
from rlhfctl.dashboard.terminal.live import LivePrinter
from rlhfctl.events import Warned
with LivePrinter(Console(file=sys.stdout, force_terminal=True, width=80, height=24)) as printer:
    printer(Warned(stage="sft", message="careful"))
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_sigterm_gives_the_terminal_back() -> None:
    environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == -signal.SIGTERM
    after = left(result.stdout)
    assert "careful" in after
    assert HIDE not in after


def test_sigterm_amid_an_event_is_obeyed() -> None:
    code = PROGRAM.replace("    os.kill", "    with printer._full.lock:\n        time.sleep(0.8)\n        os.kill")
    environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(
        [sys.executable, "-c", f"import time{code}"], capture_output=True, env=environment, check=False, timeout=60
    )
    assert result.returncode == -signal.SIGTERM and b"careful" in result.stdout


def test_between_two_frames_the_terminal_is_as_usual_so_a_kill_leaves_the_last_one() -> None:
    """SIGKILL cannot be answered, so nothing may be left for an answer to do."""
    code = PROGRAM.replace("SIGTERM", "SIGKILL")
    environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == -signal.SIGKILL
    assert "none yet" in result.stdout  # the frame is there
    assert SECOND_PAGE not in result.stdout
    for off, on in ((HIDE, SHOW), (NO_WRAP, WRAP)):
        assert result.stdout.count(off) == result.stdout.count(on) > 0
        assert result.stdout.rindex(on) > result.stdout.rindex(off)


def test_a_terminal_that_is_halted_does_not_halt_the_run() -> None:
    class Halted(io.StringIO):
        """It takes what is written only once it may."""

        def __init__(self) -> None:
            super().__init__()
            self.may = threading.Event()
            self.waits = threading.Event()

        def write(self, text: str) -> int:
            self.waits.set()
            self.may.wait(60.0)
            return super().write(text)

    file = Halted()
    file.may.set()
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system=None)
    with LivePrinter(console) as printer:
        file.may.clear()
        file.waits.clear()
        assert file.waits.wait(60.0)  # the next frame is on its way
        events = threading.Thread(target=lambda: printer(StageStarted(stage="sft", total_steps=3)), daemon=True)
        events.start()
        events.join(60.0)
        assert not events.is_alive() and not file.may.is_set()
        file.may.set()


def test_a_terminal_that_grows_gets_its_lines_from_above_pushed_up_again() -> None:
    console = terminal(escapes=True)
    with LivePrinter(console) as printer:
        console._height = 30
        before = len(written(console))
        printer._full.draw()
        assert "\x1b[30;1H" + "\n" * 6 + "\x1b[H" in written(console)[before:]
        before = len(written(console))
        printer._full.draw()
        assert "\x1b[30;1H" not in written(console)[before:]
