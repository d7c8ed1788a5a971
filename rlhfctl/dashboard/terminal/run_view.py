"""Show runs to people: open the listeners while stages run, print the verdict, compare finished runs.

Writes events.jsonl and standard output. Turns signals into errors that say how to continue. Leaves out running the
stages (pipeline.py).
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.text import Text

from rlhfctl.artifacts import MANIFEST, Artifact, changed_inputs, changed_keys, find_artifact, load_artifact
from rlhfctl.dashboard.jsonl import JsonlWriter
from rlhfctl.dashboard.terminal.console import console
from rlhfctl.dashboard.terminal.plain import PlainPrinter
from rlhfctl.dashboard.terminal.tables import comparison_table, runs_table, samples_view, summary_table
from rlhfctl.errors import OutputClosed, RlhfctlError
from rlhfctl.events import Event, FanOut, Listener, RunStopped
from rlhfctl.graph import STAGES
from rlhfctl.paths import RunPaths
from rlhfctl.verdict import lowest_control

_GO_ON = "the same command resumes from the last complete checkpoint"
_STOPPED_BY = {  # signal -> words for the message
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "asked to end (SIGTERM)",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
}
# A stage's input -> its name in a list of differences.
_INPUTS = {"model": "model", "functions": "the reward functions"}
_READER_GONE = (errno.EPIPE, errno.EIO)  # errors of a closed pipe and a closed terminal


class Interrupted(RlhfctlError):
    """Error raised when a signal ends the stages: Ctrl-C, a scheduler's request to end, or a closed terminal."""

    def __init__(self, number: signal.Signals) -> None:
        self.exit_code = 128 + number  # the exit code that shells report for this signal
        super().__init__(f"stopped: {_STOPPED_BY[number]}", fix=_GO_ON)


@contextmanager
def open_listeners(events: Path) -> Iterator[FanOut]:
    """Open the listeners of a run: events.jsonl, and the screen on a terminal or plain lines elsewhere.

    A terminal that cannot move its cursor gets plain lines. Raises Interrupted on a signal that asks for an end, and
    OutputClosed when nobody reads standard output any more.
    """
    screen = console()
    with _signals_as_interrupted() as stop, JsonlWriter(events) as writer:
        from rlhfctl.dashboard.terminal.watch import history

        if screen.is_terminal and not screen.is_dumb_terminal:
            from rlhfctl.dashboard.terminal.live import LivePrinter

            with LivePrinter(screen, history(events)) as live, _report_stop_reason([writer, live], stop):
                yield FanOut([stop, writer, live])
        else:
            with _report_stop_reason([writer], stop):
                yield FanOut([stop, writer, _output_closed_as_error(PlainPrinter(sys.stdout, history(events)))])


@contextmanager
def _signals_as_interrupted() -> Iterator[_Stop]:
    """Raise Interrupted on the signals that ask for an end. An ignored signal (nohup) stays ignored."""
    stop = _Stop()
    before = {
        number: signal.signal(number, stop.ask)
        for number in _STOPPED_BY
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield stop
    except KeyboardInterrupt:
        raise Interrupted(stop.asked or signal.SIGINT) from None
    except RlhfctlError:
        raise
    except Exception as error:  # a library made another error of the interrupt; or the terminal was closed
        if stop.asked is None:
            raise
        raise Interrupted(stop.asked) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """Keep the signal that asked for an end, and raise KeyboardInterrupt for it.

    It is also a listener: it raises once more at the next event, in case a library swallowed the exception.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def ask(self, number: int, frame: object) -> None:
        self.asked = signal.Signals(number)
        raise KeyboardInterrupt

    def __call__(self, event: Event, /) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt


def _output_closed_as_error(listener: Listener) -> Listener:
    """Wrap a listener that writes to standard output: raise OutputClosed when nobody reads it any more."""

    def tell(event: Event, /) -> None:
        try:
            listener(event)
        except OSError as error:
            if error.errno not in _READER_GONE:
                raise
            raise OutputClosed(
                "stopped: standard output was closed",
                fix=f"{_GO_ON}; to run unwatched, send its output to a file: > run.log",
            ) from error

    return tell


@contextmanager
def _report_stop_reason(listeners: list[Listener], stop: _Stop) -> Iterator[None]:
    """Emit RunStopped with the reason when an exception leaves the stages, then raise the exception again."""
    try:
        yield
    except BaseException as error:
        turned = stop.asked is not None and isinstance(error, Exception) and not isinstance(error, RlhfctlError)
        if isinstance(error, KeyboardInterrupt) or turned:
            reason = f"{_STOPPED_BY[stop.asked or signal.SIGINT]}; {_GO_ON}"
        else:
            reason = str(error) if isinstance(error, RlhfctlError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # on a full disk, for example: the exception is more important
            for listener in listeners:
                listener(RunStopped(stage="run", reason=reason))
        raise


def print_verdict(last: Artifact) -> None:
    """Print the verdict and some samples, if the last stage that ran is the comparison; over seeds no samples."""
    if last.has("summary"):
        console().print(summary_table(json.loads(last.part("summary").read_text(encoding="utf-8"))))
        console().print()
    if not last.has("compare"):
        return
    screen = console()
    rows = [json.loads(line) for line in last.part("samples").read_text(encoding="utf-8").splitlines()]
    screen.print(samples_view([row for row in rows if row["sample"] == 0]))  # one sample per prompt
    screen.print()
    screen.print(comparison_table(json.loads(last.part("compare").read_text(encoding="utf-8"))))
    screen.print()


def print_run_comparison(runs: list[Path], *, as_json: bool = False) -> None:
    """Print the verdicts of several runs as a table, or one run's in full.

    `as_json`: print their `compare.json`, or the `summary.json` of a run over several seeds.
    """
    reports: dict[Path, Mapping[str, Any]] = {}
    artifacts: dict[Path, Artifact] = {}
    for path in runs:
        stage = _judged_by(path)
        if len(runs) > 1 and find_artifact(path / stage) is None:
            continue
        artifacts[path] = load_artifact(path / stage)
        artifacts[path].verify()
        reports[path] = json.loads(artifacts[path].part(stage).read_text(encoding="utf-8"))
    if not reports:
        raise RlhfctlError("none of these runs has a verdict yet", fix=f"finish one: rlhfctl show {runs[0]}")
    if as_json:
        sys.stdout.write(json.dumps({str(path): reports.get(path) for path in runs}, indent=2) + "\n")
        return
    if len(runs) == 1:
        report = reports[runs[0]]
        console().print(summary_table(report) if "seeds" in report else comparison_table(report))
        return
    console().print(runs_table([_run_row(path, reports.get(path)) for path in runs]))
    for note in _comparability_notes(reports, artifacts):
        console().print(Text(note))


def _judged_by(run: Path) -> str:
    """Return the stage with a run's verdict: `summary` over several seeds, else `compare`.

    A run that was changed from one to the other has both: the newer one counts.
    """
    made = [stage for stage in ("compare", "summary") if (run / stage / MANIFEST).is_file()]
    return max(made, key=lambda stage: (run / stage / MANIFEST).stat().st_mtime, default="compare")


def _run_row(path: Path, report: Mapping[str, Any] | None) -> dict[str, Any]:
    if report is None:
        return {"run": str(path), "verdict": "unfinished"}
    primary = report["primary_judge"]
    judge = report["judges"][primary]
    keys = ("delta", "win_rate", "win_rate_ci95", "independent")
    return {
        "run": str(path) + (f" ({len(report['seeds'])} seeds)" if "seeds" in report else ""),
        "verdict": report["verdict"],
        "primary_judge": primary,
        "kl": _mean(report["kl_mean"]),
        "length": _mean(report.get("length_policy_mean")),
        "control_win_rate": lowest_control(report),
        "greedy_win_rate": (report.get("greedy") or {}).get(primary, {}).get("win_rate"),
    } | {key: judge.get(key) for key in keys}


def _mean(value: float | list[float | None] | None) -> float | None:
    """Average a number per seed; the number of a run with one seed stays as it is."""
    if not isinstance(value, list):
        return value
    known = [one for one in value if one is not None]
    return fmean(known) if len(known) == len(value) else None


def _comparability_notes(
    reports: Mapping[Path, Mapping[str, Any]], artifacts: Mapping[Path, Artifact]
) -> Iterator[str]:
    """Yield reasons why the runs' figures cannot be compared directly, and settings that differ from the first."""
    if len({_prompts(path, artifact) for path, artifact in artifacts.items()}) > 1:
        yield "these runs were compared on different test prompts: their figures are not on one scale"
    if len({report.get("temperature") for report in reports.values()}) > 1:
        yield "these runs were sampled at different temperatures: their figures are not on one scale"
    if len({json.dumps(report.get("verdict_basis")) for report in reports.values()}) > 1:
        yield "these runs had different controls"
    if len({json.dumps(report.get("seeds")) for report in reports.values()}) > 1:
        yield "these runs have different seeds: run them with the same --seeds, and they differ by their recipes alone"
    first, *others = artifacts
    for path in others:
        keys = [
            key for name, stage in STAGES.items() if stage.makes != "verdict" for key in _differences(name, first, path)
        ]
        if keys:
            yield f"{path} differs from {first}: {', '.join(dict.fromkeys(keys))}"


def _prompts(run: Path, artifact: Artifact) -> str | None:
    """Return the fingerprint of the test prompts of a comparison, which all seeds share."""
    compared = artifact if artifact.has("compare") else _stage_of(run, "compare")
    return compared.manifest.inputs.get("data.prompts") if compared is not None else None


def _stage_of(run: Path, name: str) -> Artifact | None:
    """Return the stage of this name that all seeds share or, without one, that of the first seed."""
    found = (find_artifact(run / str(stage)) for stage in RunPaths(run).stages() if stage.name == name)
    return next((artifact for artifact in found if artifact is not None), None)


def _differences(name: str, first: Path, other: Path) -> list[str]:
    """List the settings, inputs and seeds in which a stage of two runs differs."""
    one, another = _stage_of(first, name), _stage_of(other, name)
    if one is None or another is None:
        return []
    seeds = (one.manifest.seed, another.manifest.seed)
    differences = [f"{name} seed {seeds[0]} -> {seeds[1]}"] if seeds[0] != seeds[1] else []
    changed = changed_inputs(one.manifest.inputs, another.manifest.inputs)
    differences += [_INPUTS.get(key, key) for key in changed if key in _INPUTS or key.startswith("data.")]
    return differences + [f"{name}.{key}" for key in changed_keys(one.manifest.section, another.manifest.section)]
