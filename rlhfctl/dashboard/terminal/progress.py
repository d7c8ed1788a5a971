"""Show a progress bar on standard error for commands other than `run`.

Reads the `Working` events that long work emits. Draws on terminals only; pipes and files get nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rlhfctl.events import Event, Working


@contextmanager
def progress_bar() -> Iterator[Callable[[Event], None]]:
    """Yield a listener that draws one bar per piece of long work."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    screen = Console(file=sys.stderr)
    quiet = not screen.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True, disable=quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def listen(event: Event) -> None:
            if not isinstance(event, Working):
                return
            if event.what not in tasks:
                tasks[event.what] = bar.add_task(event.what, total=event.total, count="")
            count = "" if event.total is None else f"{event.done}/{event.total}"
            bar.update(tasks[event.what], completed=event.done, count=count)
            if event.over:
                bar.remove_task(tasks.pop(event.what))

        yield listen
