"""Draw a chat: in a terminal with answers that grow side by side, elsewhere as plain lines.

Reads the user's lines from standard input and writes to standard output. Control characters in a model's text are
spelled out: they are shown, and the terminal does not obey them.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text

from rlhfctl.dashboard.terminal.console import console
from rlhfctl.dashboard.text import visible
from rlhfctl.tools.chat.conversation import Answer

Show = Callable[[int, str], None]  # the index of an answer, and its text so far

PROMPT = "you> "
_EVERY_S = 0.08  # seconds between two drawings of a growing answer
_BLOCK = '"""'  # begins and ends a text of several lines
_KEPT_LINES = 3  # of the terminal, which a growing answer leaves free


class Screen(Protocol):
    """What a chat draws on. `interactive`: a person sits there; `together`: answers grow side by side."""

    interactive: bool
    together: bool

    def read(self, prompt: str = PROMPT, text: str = "") -> str:
        """Read the next text of the user; EOFError at the end. `text`: what stands there to be edited, if it can."""

    def show(self, text: str) -> None:
        """Write a text that a script reads, too."""

    def note(self, text: str) -> None:
        """Say something about the chat itself."""

    def error(self, text: str) -> None:
        """Say what went wrong."""

    def answering(self, names: Sequence[str]) -> contextlib.AbstractContextManager[Show]:
        """Draw answers while they grow."""

    def answered(self, answers: Sequence[Answer]) -> None:
        """Draw answers that are over."""


def open_screen() -> Screen:
    """Open the screen that fits standard input and output."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    shown = console()
    if interactive and not shown.is_dumb_terminal:
        return TerminalScreen(shown)
    return PlainScreen(sys.stdout, interactive=interactive)


def read_text(line: Callable[[str], str], prompt: str) -> str:
    """Read a line, or the lines between two triple quotes; `line` reads one and shows a prompt."""
    first = line(prompt)
    if not first.startswith(_BLOCK):
        return first
    lines = [first.removeprefix(_BLOCK)]
    while not lines[-1].endswith(_BLOCK):
        lines.append(line("...  " if prompt else ""))
    lines[-1] = lines[-1].removesuffix(_BLOCK)
    return "\n".join(lines).removeprefix("\n").removesuffix("\n")


def safe(text: str) -> str:
    """Return a model's text as it is shown."""
    return visible(text, newlines=True)


class PlainScreen:
    """Plain lines, for pipes, files and terminals that cannot move their cursor: one answer after the other."""

    together = False

    def __init__(self, stream: TextIO, *, interactive: bool, line: Callable[[str], str] = input) -> None:
        self.stream, self.interactive, self.line = stream, interactive, line

    def read(self, prompt: str = PROMPT, text: str = "") -> str:
        """Read the next text; without a person no prompt is written. No text can be edited here."""
        return read_text(self.line, prompt if self.interactive else "")

    def show(self, text: str) -> None:
        """Write a text."""
        self._write(f"{safe(text)}\n")

    def note(self, text: str) -> None:
        """Write a sentence about the chat, but only to a person: a script reads answers."""
        if self.interactive:
            self._write(f"{text}\n")

    def error(self, text: str) -> None:
        """Write what went wrong to standard error."""
        print(text, file=sys.stderr)  # noqa: T201

    @contextlib.contextmanager
    def answering(self, names: Sequence[str]) -> Iterator[Show]:
        """Write an answer as it grows."""
        self._write(f"{names[0]}: ")
        written = ""

        def show(index: int, text: str) -> None:
            nonlocal written
            text = safe(text)
            if text.startswith(written):
                self._write(text[len(written) :])
                written = text

        yield show
        self._write("\n")

    def answered(self, answers: Sequence[Answer]) -> None:
        """Write the score and the length below the answer."""
        self._write("".join(f"  ({answer.described()})\n" for answer in answers))

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class TerminalScreen:
    """A terminal: answers grow in place, two of them side by side."""

    interactive = True
    together = True

    def __init__(self, shown: Console, line: Callable[[str], str] = input) -> None:
        with contextlib.suppress(ImportError):  # without it a line cannot be edited
            import readline  # noqa: F401
        self.console, self.line = shown, line

    def read(self, prompt: str = PROMPT, text: str = "") -> str:
        """Read the next text; `text` stands there already, to be edited."""
        with _typed_in(text):
            return read_text(self.line, prompt)

    def show(self, text: str) -> None:
        """Print a text."""
        self.console.print(Text(safe(text)))

    def note(self, text: str) -> None:
        """Print a sentence about the chat."""
        self.console.print(Text(text, "dim"))

    def error(self, text: str) -> None:
        """Print what went wrong."""
        self.console.print(Text(safe(text), "red"))

    @contextlib.contextmanager
    def answering(self, names: Sequence[str]) -> Iterator[Show]:
        """Draw the answers while they grow; the drawing is removed at the end, when `answered` prints them whole."""
        texts = [""] * len(names)
        drawn = 0.0
        with Live(console=self.console, auto_refresh=False, transient=True) as live:

            def show(index: int, text: str) -> None:
                nonlocal drawn
                texts[index] = text
                if time.monotonic() - drawn >= _EVERY_S:
                    live.update(_Tail(side_by_side(names, texts, [""] * len(names))), refresh=True)
                    drawn = time.monotonic()

            yield show

    def answered(self, answers: Sequence[Answer]) -> None:
        """Print the answers with their scores and lengths."""
        columns = zip(*((one.by, one.text, one.described()) for one in answers), strict=True)
        names, texts, footers = (list(column) for column in columns)
        best = [one.score for one in answers if one.score is not None]
        marked = len(best) > 1 and max(best) > min(best)
        styles = ["green" if marked and one.score == max(best) else "dim" for one in answers]
        self.console.print(side_by_side(names, texts, footers, styles))
        self.console.print()


@contextlib.contextmanager
def _typed_in(text: str) -> Iterator[None]:
    """Put a text into the line that is read next, as if the person had typed it."""
    try:
        import readline
    except ImportError:  # without it a line cannot be edited
        text = ""
    if not text:
        yield
        return
    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        yield
    finally:
        readline.set_startup_hook(None)


def side_by_side(
    names: Sequence[str], texts: Sequence[str], footers: Sequence[str], styles: Sequence[str] = ()
) -> RenderableType:
    """Build the view of one answer, or of two in columns: name, text, and a few words below."""
    columns = Table.grid(expand=True, padding=(0, 2, 0, 0))
    for _ in names:
        columns.add_column(ratio=1, overflow="fold")
    columns.add_row(*(Text(visible(name), "bold cyan") for name in names))
    columns.add_row(*(Text(safe(text).strip()) if text.strip() else Text("(empty)", "dim") for text in texts))
    if any(footers):
        columns.add_row(*(Text(text, style) for text, style in zip(footers, styles, strict=True)))
    return columns


class _Tail:
    """The last lines of a view that is higher than the terminal, and an empty line, where the terminal echoes ^C."""

    def __init__(self, view: RenderableType) -> None:
        self.view = view

    def __rich_console__(self, shown: Console, options: ConsoleOptions) -> RenderResult:
        lines = shown.render_lines(Group(self.view), options.update(height=None), pad=False)
        yield SegmentLines([*lines[-max(1, options.size.height - _KEPT_LINES) :], []], new_lines=True)
