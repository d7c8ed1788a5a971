"""Open the rich console that commands print through: as wide as the terminal, or fixed for pipes and files."""

from __future__ import annotations

import sys

from rich.console import Console

_PIPED_WIDTH = 100


def console() -> Console:
    """Open a console on the current standard output."""
    stream = sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else _PIPED_WIDTH)
