"""`rlhfctl` and `python -m rlhfctl`: starts the command line, and turns errors into exit codes.

A plain `watch RUN` is drawn before the command line's libraries could load; the same command with options, and its
help, are cli.py's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rlhfctl.errors import RlhfctlError, out_of_memory


def main() -> None:
    """One message and an exit code for what a user can cause; a traceback for our own defects.

    Typer itself reports misspelt commands and options (exit code 2).
    """
    try:
        if len(sys.argv) == 3 and sys.argv[1] == "watch" and not sys.argv[2].startswith("-"):
            from rlhfctl.dashboard.watch import watch

            watch(Path(sys.argv[2]))
        else:
            from rlhfctl.cli import app

            app()
    except RlhfctlError as error:
        _say(error)
        sys.exit(error.exit_code)
    except Exception as error:
        from rlhfctl.fs import disk_full, is_disk_full

        if is_disk_full(error):
            known: RlhfctlError | None = disk_full(Path(getattr(error, "filename", None) or "."))
        else:
            known = out_of_memory(error)
        if known is None:  # a defect of ours: show where
            raise
        _say(known)
        sys.exit(known.exit_code)


def _say(error: RlhfctlError) -> None:
    encoding = sys.stderr.encoding or "utf-8"
    print(f"error: {error}".encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
