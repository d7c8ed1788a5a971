"""What a command shows: who listens while stages run, the verdict once they are done, finished runs side by side.

Writes events.jsonl and to standard output; turns Ctrl-C into an error with a way on. Runs nothing itself.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import Artifact, load_artifact
from rlhfctl.dashboard.console import console
from rlhfctl.dashboard.jsonl import JsonlWriter
from rlhfctl.dashboard.plain import PlainPrinter
from rlhfctl.dashboard.tables import comparison_table, runs_table, samples_view
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Event, FanOut, Listener, RunStopped


class Interrupted(RlhfctlError):
    """Ctrl-C while stages ran."""

    exit_code = 130  # what a shell reports for it

    def __init__(self) -> None:
        super().__init__("stopped", fix="the same command goes on from the last complete checkpoint")


@contextmanager
def listening(events: Path) -> Iterator[FanOut]:
    """events.jsonl always; the screen on a terminal, plain lines elsewhere (a terminal that knows no more included).

    Ctrl-C leaves as Interrupted.
    """
    screen = console()
    with _stoppable() as first, JsonlWriter(events) as writer:
        if screen.is_terminal and not screen.is_dumb_terminal:
            from rlhfctl.dashboard.live import LivePrinter
            from rlhfctl.dashboard.watch import history

            with LivePrinter(screen, history(events)) as live, _saying_why([writer, live]):
                yield FanOut([first, writer, live])
        else:
            with _saying_why([writer]):
                yield FanOut([first, writer, PlainPrinter(sys.stdout)])


@contextmanager
def _stoppable() -> Iterator[Listener]:
    """Turn Ctrl-C into Interrupted, also where a library swallows it at import: then the next event stops."""
    asked = False

    def interrupt(signum: int, frame: object) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def stop_if_asked(event: Event) -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop_if_asked
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _saying_why(listeners: list[Listener]) -> Iterator[None]:
    """Where stages are left by an exception, tell those who watch; the exception goes on."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            reason = "Ctrl-C; the same command goes on from the last complete checkpoint"
        else:
            reason = str(error) if isinstance(error, RlhfctlError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # a full disk, say: the error itself is what counts
            for listener in listeners:
                listener(RunStopped(stage="run", reason=reason))
        raise


def closing(last: Artifact) -> None:
    """The verdict and some samples, where the last stage that ran is the comparison."""
    if not last.has("compare"):
        return
    screen = console()
    rows = [json.loads(line) for line in last.part("samples").read_text(encoding="utf-8").splitlines()]
    screen.print(samples_view([row for row in rows if row["sample"] == 0]))  # one a prompt
    screen.print()
    screen.print(comparison_table(json.loads(last.part("compare").read_text(encoding="utf-8"))))
    screen.print()


def compared(runs: list[Path]) -> None:
    """The verdicts of finished runs, one below the other."""
    reports: list[tuple[Path, Mapping[str, Any], Artifact]] = []
    for path in runs:
        artifact = load_artifact(path / "compare")
        artifact.verify()
        reports.append((path, json.loads(artifact.part("compare").read_text(encoding="utf-8")), artifact))
    if len(reports) == 1:
        console().print(comparison_table(reports[0][1]))
        return
    rows = []
    for path, report, _ in reports:
        judge = report["judges"][report["primary_judge"]]
        keys = ("delta", "delta_ci95", "win_rate", "win_rate_ci95", "independent")
        rows.append(
            {
                "run": str(path),
                "verdict": report["verdict"],
                "primary_judge": report["primary_judge"],
                "kl": report["kl_mean"],
            }
            | {key: judge.get(key) for key in keys}
        )
    console().print(runs_table(rows))
    if len({artifact.manifest.inputs.get("data.prompts") for _, _, artifact in reports}) > 1:
        console().print("these runs were compared on different test prompts: their figures are not on one scale")
