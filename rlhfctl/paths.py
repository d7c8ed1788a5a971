"""Name the files of a run folder, and the stages in it. Standard library alone, so that `watch` starts quickly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EVENTS, LOCK = "events.jsonl", ".lock"


def relative_to_run(path: Path, run: Path) -> str:
    """`path` relative to the run folder where it lies inside it (a moved run stays whole), else absolute."""
    resolved, base = path.resolve(), run.resolve()
    return resolved.relative_to(base).as_posix() if resolved.is_relative_to(base) else resolved.as_posix()


@dataclass(frozen=True)
class RunPaths:
    """Where things lie in a run folder."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def events(self) -> Path:
        return self.root / EVENTS

    @property
    def log(self) -> Path:
        return self.root / "libraries.log"

    @property
    def lock(self) -> Path:
        return self.root / LOCK

    @property
    def superseded(self) -> Path:
        return self.root / "superseded"

    def stage(self, name: str) -> Path:
        return self.root / name
