"""Start the command line (`rlhfctl` and `python -m rlhfctl`) and turn errors into exit codes.

`watch RUN` without options starts the dashboard directly, without the time to import the command line's libraries. The
same command with options, and its help, are in cli/. Reads the arguments; prints one message per error to standard
error.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from rlhfctl.errors import OutputClosed, RlhfctlError, out_of_memory

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)  # the system does not open the file
_SHOWN = 200  # characters of a path


def main() -> None:
    """Run the command; print one message and set an exit code for errors that a user can cause.

    Other exceptions are defects of rlhfctl and show a traceback. Typer reports misspelt commands and options itself
    (exit code 2).
    """
    # At its end Python's collector would look through all of torch: seconds on a busy machine.
    atexit.register(gc.freeze)
    with silent_imports():
        _main()


@contextlib.contextmanager
def silent_imports() -> Iterator[None]:
    """Keep warnings and log records of libraries from standard error in every command, mainly during imports.

    Python prints them if no handler is set. A run's log still receives them: quiet_libraries adds a handler of its own.
    Errors are raised, not logged.
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
        if isinstance(error, OutputClosed):  # the rest of the buffer must not fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `rlhfctl watch RUN | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(OutputClosed.exit_code)
    except Exception as error:
        known = _system_error(error) or out_of_memory(error)
        if known is None:  # a defect of rlhfctl: show the traceback
            raise
        _say(known)
        sys.exit(known.exit_code)


def _system_error(error: Exception) -> RlhfctlError | None:
    """Turn a full disk, or a file that the system refuses to open, into RlhfctlError; None for other errors."""
    from rlhfctl.fs import disk_full, is_disk_full

    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
        return RlhfctlError(f"{error.strerror}", where=str(error.filename)[:_SHOWN], fix="check path and permissions")
    if is_disk_full(error):
        return disk_full(Path(getattr(error, "filename", None) or "."))
    return None


def _say(error: RlhfctlError) -> None:
    encoding = sys.stderr.encoding or "utf-8"
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"{error.heading}: {error}".encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
