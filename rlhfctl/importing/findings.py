"""Collect a recipe from the fields of another tool, and account for each field: carried over, changed, or left out.

A `Job` is one training of the other tool: its stage and its fields. `Fields` hands them out one by one, so that a field
that nobody asked for is found at the end and listed as unknown. `Draft` is the recipe as it grows, with the findings.
Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["sft", "reward", "ppo"]
Kind = Literal["carried", "changed", "default", "dropped", "yours"]

TITLES: dict[Kind, str] = {
    "carried": "carried over",
    "changed": "changed meaning",
    "default": "not stated there: the tool's default, written down because rlhfctl's differs",
    "dropped": "no counterpart: left out",
    "yours": "yours to settle",
}
"""The kinds of findings in the order of the list, with their headings."""

UNKNOWN = "no field that `rlhfctl import` knows"
_MISSING = object()


@dataclass(frozen=True)
class Job:
    """One training of another tool. `where`: its file and command, for the list of findings."""

    tool: str
    stage: Stage
    fields: Mapping[str, Any]
    where: str
    repeated: tuple[tuple[str, Any], ...] = ()  # stated again later on the same command line
    algorithm: str = ""  # of TRL's trainers that train by another algorithm than PPO


@dataclass(frozen=True)
class Finding:
    """What became of one field: its name and value there, the recipe's key and value, and words about it."""

    kind: Kind
    name: str
    value: Any
    key: str = ""
    now: Any = None
    words: str = ""

    def __str__(self) -> str:
        if self.kind == "default":
            return f"{self.key}: {shown(self.now)} ({'; '.join(filter(None, (self.name, self.words)))})"
        there = f"{self.name}: {shown(self.value)}" if self.name else ""
        here = self.key if self.kind == "yours" and self.now is None else f"{self.key}: {shown(self.now)}"
        here = here if self.key else ""
        arrow = " -> ".join(part for part in (there, here) if part)
        return f"{arrow} ({self.words})" if self.words and arrow else arrow or self.words


@dataclass
class Draft:
    """The recipe as it grows, and what was found on the way, by job."""

    recipe: dict[str, Any] = field(default_factory=dict)
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    outputs: dict[str, Stage] = field(default_factory=dict)  # folder that a job wrote -> its stage

    def get(self, key: str) -> Any:
        """Return the value of a dotted key; None if it is not set."""
        value: Any = self.recipe
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def has(self, key: str) -> bool:
        """Tell whether a dotted key is set, also to null."""
        above, _, last = key.rpartition(".")
        section = self.get(above) if above else self.recipe
        return isinstance(section, dict) and last in section

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key."""
        *path, last = key.split(".")
        section = self.recipe
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value

    def open(self, stage: Stage) -> None:
        """Make the section of a stage, which may stay empty."""
        self.recipe.setdefault(stage, {})


def shown(value: Any) -> str:
    """Write a value as YAML writes it in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) + "}"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


class Fields:
    """The fields of a job. Each is carried, changed or dropped once; `finish` lists those that were not."""

    def __init__(self, job: Job, draft: Draft) -> None:
        self.job, self.draft = job, draft
        self.left = dict(job.fields)
        for name, value in job.repeated:
            self._find("dropped", name, value, words="stated again later in the same command, which counts")

    def __contains__(self, name: str) -> bool:
        return self.job.fields.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or `default` if it is absent or null; nothing is accounted for."""
        value = self.job.fields.get(name)
        return default if value is None else value

    def on(self, name: str) -> bool:
        """Tell whether a switch is on."""
        return self.job.fields.get(name) is True

    def carry(self, name: str, key: str, value: Any = _MISSING, words: str = "") -> None:
        """Write the field into the recipe under `key`; with `words`, its meaning has changed. Absent: nothing."""
        if name not in self.left:
            return
        was = self.left.pop(name)
        if was is None:
            self._find("dropped", name, was, words="null: the default")
            return
        now = was if value is _MISSING else value
        if self.draft.has(key) and self.draft.get(key) != now:
            kept = f"it stays {shown(self.draft.get(key))}, as an earlier field or command has it"
            self._find("dropped", name, was, words=f"{key} has one value for the whole recipe: {kept}")
            return
        self.draft.set(key, now)
        self._find("changed" if words else "carried", name, was, key, now, words)

    def default(self, name: str, key: str, value: Any, words: str = "") -> None:
        """Write the tool's default of a field that the job does not state, unless the recipe has the key."""
        if name in self.job.fields or self.draft.has(key):
            return
        self.draft.set(key, value)
        self._find("default", name, value, key, value, words)

    def note(self, key: str, value: Any, words: str) -> None:
        """Write a key that follows from how the tool works, not from one field."""
        if not self.draft.has(key):
            self.draft.set(key, value)
            self._find("default", "", None, key, value, words)

    def changed(self, name: str, words: str, key: str = "", now: Any = None) -> None:
        """Account for a field whose effect the recipe has in another form; `key` is set elsewhere."""
        if name in self.left:
            self._find("changed", name, self.left.pop(name), key, now, words)

    def same(self, name: str, words: str) -> None:
        """Account for a field whose effect the recipe has without a key."""
        if name in self.left:
            self._find("carried", name, self.left.pop(name), words=words)

    def drop(self, name: str, words: str) -> None:
        """Account for a field that has no counterpart."""
        if name in self.left:
            self._find("dropped", name, self.left.pop(name), words=words)

    def settle(self, key: str, words: str) -> None:
        """Note something that only the user can say."""
        self._find("yours", "", None, key, self.draft.get(key) if key else None, words)

    def table(self, carried: Mapping[str, str], dropped: Mapping[str, str]) -> None:
        """Account for the fields of two tables: name -> key, and name -> why there is no counterpart."""
        for name, key in carried.items():
            self.carry(name, key)
        for name, words in dropped.items():
            self.drop(name, words)

    def trainer(self, stage: Stage, names: Iterable[str]) -> None:
        """Carry options of TRL's trainers over, under the stage's `trainer:`."""
        for name in names:
            self.carry(name, f"{stage}.trainer.{name}")

    def finish(self, reason: Callable[[str], str | None] = lambda name: None) -> None:
        """List every field that is left. `reason`: why a field of this name is left out, where that is known."""
        for name in list(self.left):
            self.drop(name, reason(name) or UNKNOWN)

    def _find(self, kind: Kind, name: str, value: Any, key: str = "", now: Any = None, words: str = "") -> None:
        self.draft.findings.append((self.job.where, Finding(kind, name, value, key, now, words)))
