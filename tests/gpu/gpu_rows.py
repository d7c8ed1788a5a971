"""The rows of check.sh: what each found, the time that all may take, and their table as text, Markdown and JSON."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 300  # characters of an error: its end says most
WORDS = {True: "ok", False: "FAILED", None: "skipped"}


@dataclass(frozen=True)
class Outcome:
    """What a row found. `passed` is None where it was skipped; `why`: the number that decided, or the reason."""

    passed: bool | None
    why: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table. `least`: the seconds that must be left for it to begin. `quick`: also with --quick."""

    name: str
    make: Callable[[], Outcome]
    least: float = 0.0
    quick: bool = False


@dataclass(frozen=True)
class Done:
    """A row that was made or skipped, and its seconds."""

    name: str
    outcome: Outcome
    seconds: float

    def line(self) -> str:
        """One line of the table in the terminal."""
        return f"{self.name:<34} {WORDS[self.outcome.passed]:<8} {self.seconds:6.1f} s  {self.outcome.why}"


class Budget:
    """The seconds that all rows may take together, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds that are left; 0 when the time is over."""
        return max(0.0, self._end - self._clock())


def made(rows: Sequence[Row], budget: Budget, *, quick: bool = False) -> Iterator[Done]:
    """Make the rows in order. A row that would exceed what is left of the budget is skipped, and says so."""
    for row in rows:
        began, left = time.monotonic(), budget.left()
        if quick and not row.quick:
            outcome = Outcome(None, "left out by --quick")
        elif left < row.least:
            outcome = Outcome(None, f"needs {row.least:.0f} s, and {left:.0f} s of the time are left")
        else:
            outcome = _tried(row)
        yield Done(row.name, outcome, time.monotonic() - began)


def _tried(row: Row) -> Outcome:
    try:
        return row.make()
    except subprocess.TimeoutExpired as late:
        return Outcome(None, f"stopped after {late.timeout:.0f} s: the time was over")
    except Exception as error:  # noqa: BLE001 - a failure is a row of the table
        return Outcome(False, f"{type(error).__name__}: {' '.join(str(error).split())[-_SHOWN:]}")


# ---------------------------------------------------------------- the table as files

_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "tokens/s": lambda f: f"{f['tokens_per_s']:,.0f}",
    "sampling": lambda f: f"{f['shares']['sampling']:.0%}",
    "scoring": lambda f: f"{f['shares']['scoring']:.0%}",
    "learning": lambda f: f"{f['shares']['learning']:.0%}",
    "MFU": lambda f: "" if f["mfu"] is None else f"{f['mfu']:.1%}",
    "peak GiB": lambda f: f"{f['peak_gib']:.2f}",
    "`plan` GiB": lambda f: "" if f.get("plan_gib") is None else f"{f['plan_gib']:.2f}",
    "error of `plan`": lambda f: "" if f.get("plan_error") is None else f"{f['plan_error']:+.1%}",
}


def as_json(about: dict[str, Any], done: Sequence[Done]) -> dict[str, Any]:
    """All that was found, for scripts. `about`: device, versions and settings."""
    rows = [
        {
            "name": one.name,
            "result": WORDS[one.outcome.passed],
            "why": one.outcome.why,
            "seconds": one.seconds,
            "figures": one.outcome.figures,
        }
        for one in done
    ]
    return {**about, "passed": all(one.outcome.passed is not False for one in done), "rows": rows}


def as_markdown(about: dict[str, Any], done: Sequence[Done]) -> str:
    """The same as an entry for LOG.md: device, versions and command, a table of the checks, a table of the speed."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['device']}; {versions}. `{about['command']}`",
        "",
        "| check | result | found |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {one.name} | {WORDS[one.outcome.passed]} | {_one_line(one.outcome.why)} |"
        for one in done
        if "tokens_per_s" not in one.outcome.figures
    ]
    measured = [one for one in done if "tokens_per_s" in one.outcome.figures]
    if measured:
        lines += ["", about["work"], "", f"| engine | {' | '.join(_COLUMNS)} |", "| --- |" + " --- |" * len(_COLUMNS)]
        for one in measured:
            cells = " | ".join(show(one.outcome.figures) for show in _COLUMNS.values())
            lines.append(f"| {one.name} | {cells} |")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:_SHOWN]
