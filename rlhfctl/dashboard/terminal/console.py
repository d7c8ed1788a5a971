"""The one rich console that commands print through: a terminal's width, or a fixed one in pipes and files."""

from __future__ import annotations

import sys

from rich.console import Console

_PIPED_WIDTH = 100


def console() -> Console:
    """Open a console on standard output as it is now."""
    stream = sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else _PIPED_WIDTH)
