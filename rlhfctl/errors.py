"""Every error a user can cause: what happened, where, and what to do about it.

Only these are shown as one message without a traceback (__main__.py maps them to exit codes); any other exception is
a defect of ours and propagates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


class RlhfctlError(Exception):
    """What happened, where (file, line, command), and the command or edit that fixes it."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def place(self, places: Mapping[str, str]) -> None:
        """Where the error names a key of the recipe, say where that stands: `places` by dotted key."""
        if self.where is not None and (place := _place_of(self.where, places)) is not None:
            self.where = f"{place}: {self.where}"


def _place_of(key: str, places: Mapping[str, str]) -> str | None:
    """Where a key stands, or else the nearest section above it that the recipe has."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return None


@dataclass(frozen=True)
class Problem:
    """One fault in a recipe: the key it is about, where it stands, and a way out."""

    key: str
    what: str
    where: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        tail = f"\n      fix: {self.fix}" if self.fix else ""
        return f"{head}{self.key}: {self.what}{tail}" if self.key else f"{head}{self.what}{tail}"


class RecipeError(RlhfctlError):
    """All faults of a recipe at once."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self._say(problems)

    def _say(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        RlhfctlError.__init__(self, f"the recipe has {count}:\n" + "\n".join(f"  - {problem}" for problem in problems))

    def place(self, places: Mapping[str, str]) -> None:
        """The same for each problem that has no place yet."""
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
    """The faults of several data sets, each with its own place and way out."""

    def __init__(self, errors: Sequence[DataError]) -> None:
        self._say(errors)

    def _say(self, errors: Sequence[DataError]) -> None:
        self.errors = list(errors)
        told = [str(error).replace("\n", "\n    ") for error in errors]
        super().__init__(f"{len(errors)} faults in the data:\n" + "\n".join(f"  - {text}" for text in told))

    def place(self, places: Mapping[str, str]) -> None:
        """The same for each of them."""
        for error in self.errors:
            error.place(places)
        self._say(self.errors)


class HandoffError(RlhfctlError):
    """What one stage left is not what the next one needs: incomplete, altered, of another tokenizer or base."""

    exit_code = 3


class RunBusyError(RlhfctlError):
    """Another process works on the same run."""

    exit_code = 4


class EngineError(RlhfctlError):
    """The installed libraries cannot do what the recipe asks."""

    exit_code = 5


class RewardFailed(RlhfctlError):
    """A reward function raised, or returned what is no score. Once it is mended, the same command resumes."""

    exit_code = 6


class OutputClosed(RlhfctlError):
    """Nobody reads standard output any more: `rlhfctl run ... | head`."""

    exit_code = 141  # what a shell reports for SIGPIPE


def out_of_memory(error: BaseException) -> RlhfctlError | None:
    """What to say where `error` is one of CUDA's (known by its name: torch stays unloaded), Python's, MPS's or the
    CPU's for no memory; None for any other.
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
