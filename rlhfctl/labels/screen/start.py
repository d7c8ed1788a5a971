"""Run the terminal screen for one annotator, where there is a terminal and the library for it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from rlhfctl.errors import EngineError, RlhfctlError
from rlhfctl.labels.desk import Desk


def label_in_terminal(desk: Desk, annotator: str) -> int:
    """Show questions until the annotator quits, and return how many labels were given; skips do not count.

    Raises RlhfctlError where there is no terminal, EngineError where textual is missing. Labels are on disk one by one.
    """
    check_terminal()
    from rlhfctl.labels.screen.app import LabelApp  # textual takes a tenth of a second, and may be missing

    app = LabelApp(desk, annotator)
    app.run()
    if app.return_code:  # textual has printed the traceback
        raise RlhfctlError(
            "the screen stopped because of a defect, which is printed above; all labels given so far are kept",
            fix="the same command goes on; `rlhfctl label --web` shows the questions in the browser",
        )
    return app.labels_given


def check_terminal() -> None:
    """Raise the error of a missing library or terminal, before anything is drawn."""
    if find_spec("textual") is None:
        raise EngineError(
            "the terminal screen needs the library textual, which is not installed",
            fix="pip install 'rlhfctl[label]'",
        )
    streams = (sys.stdin, sys.stdout, sys.stderr)  # textual reads from the first and draws on the last
    if not all(stream is not None and stream.isatty() for stream in streams) or os.environ.get("TERM") == "dumb":
        raise RlhfctlError(
            "there is no terminal to show questions on: input, output or the error stream goes elsewhere",
            fix="run it in a terminal, or in the browser: rlhfctl label RUN_OR_FILE --web",
        )
