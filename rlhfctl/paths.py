"""Name the stages of a run and the files of a run folder.

Standard library only, so that `watch` starts quickly. Reads folder names; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EVENTS, LOCK, RECIPE = "events.jsonl", ".lock", "recipe.yaml"
_ROUND = re.compile(r"round-([1-9][0-9]*)")


def relative_to_run(path: Path, run: Path) -> str:
    """Return `path` relative to the run folder if it is inside (a moved run stays valid), else absolute."""
    resolved, base = path.resolve(), run.resolve()
    return resolved.relative_to(base).as_posix() if resolved.is_relative_to(base) else resolved.as_posix()


@dataclass(frozen=True, order=True)
class StageId:
    """Identify a stage of a run: its name, and the round that it belongs to (1 is the first).

    Its text is its folder inside the run and its name in events: `sft` in round 1, `round-2/sft` in round 2.
    """

    round: int
    name: str

    def __post_init__(self) -> None:
        if self.round < 1 or not self.name or "/" in self.name or _ROUND.fullmatch(self.name):
            raise ValueError(f"not a stage: round {self.round}, name {self.name!r}")

    def __str__(self) -> str:
        return self.name if self.round == 1 else f"round-{self.round}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> StageId:
        """Parse the text of a StageId; ValueError for any other text."""
        folder, slash, name = text.rpartition("/")
        if not slash:
            return cls(1, name)
        match = _ROUND.fullmatch(folder)
        if match is None or match[1] == "1":
            raise ValueError(f"not a stage: {text!r}")
        return cls(int(match[1]), name)

    def run_of(self, folder: Path) -> Path:
        """Return the run folder that holds this stage's `folder`."""
        return folder.parent if self.round == 1 else folder.parent.parent


@dataclass(frozen=True)
class RunPaths:
    """Return the paths of the files and folders in a run folder."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / RECIPE

    @property
    def events(self) -> Path:
        return self.root / EVENTS

    @property
    def log(self) -> Path:
        return self.root / "libraries.log"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def judge_cache(self) -> Path:
        """Return the file that keeps the answers of the judge `endpoint`."""
        return self.root / "judge-cache.sqlite"

    @property
    def lock(self) -> Path:
        return self.root / LOCK

    @property
    def superseded(self) -> Path:
        return self.root / "superseded"

    def stage(self, stage: StageId | str) -> Path:
        """Return the folder of a stage."""
        return self.root / str(stage)

    def superseded_stages(self, stage: StageId) -> Path:
        """Return the folder for earlier attempts of a stage."""
        return self.superseded if stage.round == 1 else self.superseded / f"round-{stage.round}"

    def later_rounds(self) -> Iterator[StageId]:
        """List the stages after round 1 that have a folder, by round and name."""
        folders = [path for path in self.root.glob("round-*/*") if path.is_dir()]
        yield from sorted(StageId.parse(f"{path.parent.name}/{path.name}") for path in folders if _is_later(path))


def _is_later(folder: Path) -> bool:
    match = _ROUND.fullmatch(folder.parent.name)
    is_stage = not folder.name.startswith(".") and _ROUND.fullmatch(folder.name) is None
    return match is not None and match[1] != "1" and is_stage


def stage_at(folder: Path) -> tuple[Path, StageId]:
    """Find the run and the stage of a stage's folder.

    A run may itself be called `round-2`. The parent folder counts as a round only if the run's recipe is above it.
    """
    above = folder.parent
    if _is_later(folder) and not (above / RECIPE).is_file() and (above.parent / RECIPE).is_file():
        return above.parent, StageId.parse(f"{above.name}/{folder.name}")
    return above, StageId(1, folder.name)
