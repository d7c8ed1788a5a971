"""Define every error that a user can cause: what happened, where, and how to fix it.

Only these errors are printed as one message without a traceback (__main__.py maps them to exit codes). Any other
exception is a defect of rlhfctl and propagates. Reads and writes no files; imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


class RlhfctlError(Exception):
    """Base class of the errors: what happened, where (file, line, command), and the command or edit that fixes it."""

    exit_code = 1
    heading = "error"  # what the command line puts before the message
    way_on = "fix"

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  {self.way_on}: {self.fix}")
        return "\n".join(lines)

    def place(self, places: Mapping[str, str]) -> None:
        """Add the file and line of the recipe key that the error names. `places`: location by dotted key."""
        if self.where is not None and (place := _place_of(self.where, places)) is not None:
            self.where = f"{place}: {self.where}"


def _place_of(key: str, places: Mapping[str, str]) -> str | None:
    """Find the location of a key, or of the nearest section above it that is in the recipe; None without either."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return None


@dataclass(frozen=True)
class Problem:
    """One fault in a recipe: its key, its location, and a fix."""

    key: str
    what: str
    where: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        tail = f"\n      fix: {self.fix}" if self.fix else ""
        return f"{head}{self.key}: {self.what}{tail}" if self.key else f"{head}{self.what}{tail}"


class RecipeError(RlhfctlError):
    """The recipe has faults: the message lists all of them."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self._say(problems)

    def _say(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        RlhfctlError.__init__(self, f"the recipe has {count}:\n" + "\n".join(f"  - {problem}" for problem in problems))

    def place(self, places: Mapping[str, str]) -> None:
        """Add the location to each problem that has none yet."""
        self._say(
            [
                problem if problem.where else replace(problem, where=_place_of(problem.key, places))
                for problem in self.problems
            ]
        )


class DataError(RlhfctlError):
    """A data file is missing or holds rows that cannot be used."""

    exit_code = 2


class DataFaults(DataError):
    """Several data sets have faults: the message lists each with its location and fix."""

    def __init__(self, errors: Sequence[DataError]) -> None:
        self._say(errors)

    def _say(self, errors: Sequence[DataError]) -> None:
        self.errors = list(errors)
        told = [str(error).replace("\n", "\n    ") for error in errors]
        super().__init__(f"{len(errors)} faults in the data:\n" + "\n".join(f"  - {text}" for text in told))

    def place(self, places: Mapping[str, str]) -> None:
        """Add the location to each of the errors."""
        for error in self.errors:
            error.place(places)
        self._say(self.errors)


class HandoffError(RlhfctlError):
    """A stage cannot use the artifact of an earlier stage: incomplete, altered, or of another tokenizer or base."""

    exit_code = 3


class RunBusyError(RlhfctlError):
    """Another process is working on the same run."""

    exit_code = 4


class EngineError(RlhfctlError):
    """The installed libraries cannot do what the recipe asks."""

    exit_code = 5


class RewardFailed(RlhfctlError):
    """A reward function raised an error or returned an invalid score. After a fix, the same command resumes."""

    exit_code = 6


class JudgeFailed(RlhfctlError):
    """A judge cannot be asked, does not answer, or gives too few usable answers. The same command goes on later."""

    exit_code = 6


class WaitsForPeople(RlhfctlError):
    """A stage cannot go on before people have done their part. Then the same command goes on."""

    exit_code = 7
    heading = "waiting"
    way_on = "next"


class GateClosed(RlhfctlError):
    """The reward model's card does not pass `reward.gate`: PPO is not begun. All stages before it are complete."""

    exit_code = 8
    heading = "stopped"


class DiskFull(RlhfctlError):
    """The disk is full. After space is freed, the same command resumes."""


class SweepFailed(RlhfctlError):
    """Some combinations of a sweep failed; the others are complete. The same command tries them again."""

    exit_code = 9


class OutputClosed(RlhfctlError):
    """The reader of standard output has closed it: `rlhfctl run ... | head`."""

    exit_code = 141  # what a shell reports for SIGPIPE


def out_of_memory(error: BaseException) -> RlhfctlError | None:
    """Turn an out-of-memory error of CUDA, Python, MPS or the CPU into RlhfctlError; return None for other errors.

    The error of CUDA is recognized by its name, so that torch need not be imported.
    """
    says = ("MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not known and not any(words in str(error) for words in says):
        return None
    said = str(error).strip().splitlines()
    return RlhfctlError(
        f"memory ran out{f': {said[0]}' if said else ''}",
        fix="`rlhfctl plan RECIPE` says what needs it and which line to change: halve per_device_train_batch_size of "
        "that stage and double its gradient_accumulation_steps, or set its gradient_checkpointing: true; stages before "
        "it stay. More ways: docs/errors.md",
    )
