"""Name the stages of a run and the files of a run folder.

Standard library only, so that `watch` starts quickly. Reads folder names; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EVENTS, LOCK, RECIPE = "events.jsonl", ".lock", "recipe.yaml"
_ROUND, _SEED = re.compile(r"round-([1-9][0-9]*)"), re.compile(r"seed-(0|[1-9][0-9]*)")


def relative_to_run(path: Path, run: Path) -> str:
    """Return `path` relative to the run folder if it is inside (a moved run stays valid), else absolute."""
    resolved, base = path.resolve(), run.resolve()
    return resolved.relative_to(base).as_posix() if resolved.is_relative_to(base) else resolved.as_posix()


@dataclass(frozen=True)
class StageId:
    """Identify a stage of a run: its name, its round (1 is the first), and its seed in a run over several seeds.

    Its text is its folder inside the run and its name in events: `sft` in round 1, `round-2/sft` in round 2. A stage
    that is run once per seed is `seed-1/ppo` or, in round 2, `round-2/seed-1/ppo`. `seed` is None for stages that all
    seeds share, and in a run with one seed.
    """

    round: int
    name: str
    seed: int | None = None

    def __post_init__(self) -> None:
        named = bool(self.name) and "/" not in self.name and not _is_group(self.name)
        if self.round < 1 or not named or (self.seed is not None and self.seed < 0):
            raise ValueError(f"not a stage: round {self.round}, name {self.name!r}, seed {self.seed}")

    def __lt__(self, other: StageId) -> bool:
        return (*self.place, self.name) < (*other.place, other.name)

    @property
    def place(self) -> tuple[int, int]:
        """The round and the seed, to sort by: stages that all seeds share come first."""
        return self.round, -1 if self.seed is None else self.seed

    def __str__(self) -> str:
        return f"{self.group}/{self.name}" if self.group else self.name

    @property
    def group(self) -> str:
        """The folders between the run and the stage: `seed-1`, `round-2`, `round-2/seed-1`, or none."""
        parts = [f"round-{self.round}"] if self.round > 1 else []
        return "/".join([*parts, *([f"seed-{self.seed}"] if self.seed is not None else [])])

    @classmethod
    def parse(cls, text: str) -> StageId:
        """Parse the text of a StageId; ValueError for any other text."""
        *groups, name = text.split("/")
        round_match = _ROUND.fullmatch(groups[0]) if groups else None
        seed_match = _SEED.fullmatch(groups[-1]) if groups else None
        found = cls(
            int(round_match[1]) if round_match is not None else 1,
            name,
            int(seed_match[1]) if seed_match is not None else None,
        )
        if str(found) != text:  # other folders, or round-1
            raise ValueError(f"not a stage: {text!r}")
        return found

    def run_of(self, folder: Path) -> Path:
        """Return the run folder that holds this stage's `folder`."""
        return folder.parents[str(self).count("/")]


def _is_group(name: str) -> bool:
    """Tell whether a folder of this name holds stages: those of a round, or of a seed."""
    return _ROUND.fullmatch(name) is not None or _SEED.fullmatch(name) is not None


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
    def labels(self) -> Path:
        """Return the file of all labels that people and judges gave in this run."""
        return self.root / "labels.sqlite"

    @property
    def demonstrations(self) -> Path:
        """Return the file of the conversations that people wrote with `label --write`."""
        return self.root / "demonstrations.jsonl"

    @property
    def writing(self) -> Path:
        """Return the file of the conversation that a person is writing."""
        return self.root / "writing.json"

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
        return self.superseded / stage.group if stage.group else self.superseded

    def stages(self) -> Iterator[StageId]:
        """List every stage that has a folder, also one that is under way, by round, seed and name."""
        patterns = ("*", "seed-*/*", "round-*/*", "round-*/seed-*/*")
        folders = {path for pattern in patterns for path in self.root.glob(pattern) if path.is_dir()}
        yield from sorted(stage for path in folders if (stage := self._stage_at(path)) is not None)

    def _stage_at(self, folder: Path) -> StageId | None:
        try:
            return None if folder.name.startswith(".") else StageId.parse(folder.relative_to(self.root).as_posix())
        except ValueError:
            return None

    def later_rounds(self) -> Iterator[StageId]:
        """List the stages after round 1 that have a folder, by round, seed and name."""
        return (stage for stage in self.stages() if stage.round > 1)


def stage_at(folder: Path) -> tuple[Path, StageId]:
    """Find the run and the stage of a stage's folder.

    A run may itself be called `round-2` or `seed-1`. The folders above the stage count as a round or a seed only if the
    run's recipe is above them.
    """
    for depth in (1, 2):
        run = folder.parents[depth] if depth < len(folder.parents) else None
        if run is None or (folder.parents[depth - 1] / RECIPE).is_file():
            break
        stage = RunPaths(run)._stage_at(folder)
        if stage is not None and (run / RECIPE).is_file():
            return run, stage
    return folder.parent, StageId(1, folder.name)
