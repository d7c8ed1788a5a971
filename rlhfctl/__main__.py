"""`rlhfctl` and `python -m rlhfctl`: starts the command line, and turns errors into exit codes.

A plain `watch RUN` is drawn before the command line's libraries could load; the same command with options, and its
help, are of cli/.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from rlhfctl.errors import OutputClosed, RlhfctlError, out_of_memory

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)  # what the system does not let us open
_SHOWN = 200  # characters of a path


def main() -> None:
    """One message and an exit code for what a user can cause; a traceback for our own defects.

    Typer itself reports misspelt commands and options (exit code 2).
    """
    with silent_imports():
        _main()


@contextlib.contextmanager
def silent_imports() -> Iterator[None]:
    """Keep what libraries warn and log, above all while they are imported, from standard error in every command.

    Python prints such records and warnings where no handler is set. A run's log still gets them (quiet_libraries adds
    a handler of its own), and errors are raised, not logged.
    """
    nowhere, root, shown = logging.NullHandler(), logging.getLogger(), warnings.showwarning
    root.addHandler(nowhere)
    logging.captureWarnings(True)
    if os.environ.get("WANDB_MODE") == "offline":  # transformers prints a line for this value; wandb takes either
        os.environ["WANDB_MODE"] = "dryrun"
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = shown
        root.removeHandler(nowhere)


def _main() -> None:
    try:
        if len(sys.argv) == 3 and sys.argv[1] == "watch" and not sys.argv[2].startswith("-"):
            from rlhfctl.dashboard.terminal.watch import watch

            watch(Path(sys.argv[2]))
        else:
            from rlhfctl.cli import app

            app()
    except RlhfctlError as error:
        if isinstance(error, OutputClosed):  # what is left in its buffer must not fail once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `rlhfctl watch RUN | head`: whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(OutputClosed.exit_code)
    except Exception as error:
        known = _of_the_system(error) or out_of_memory(error)
        if known is None:  # a defect of ours: show where
            raise
        _say(known)
        sys.exit(known.exit_code)


def _of_the_system(error: Exception) -> RlhfctlError | None:
    """A full disk, or a file that the system does not let us have."""
    from rlhfctl.fs import disk_full, is_disk_full

    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
        return RlhfctlError(f"{error.strerror}", where=str(error.filename)[:_SHOWN], fix="check path and permissions")
    if is_disk_full(error):
        return disk_full(Path(getattr(error, "filename", None) or "."))
    return None


def _say(error: RlhfctlError) -> None:
    encoding = sys.stderr.encoding or "utf-8"
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"error: {error}".encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
