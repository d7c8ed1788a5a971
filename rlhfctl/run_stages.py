"""List the stages of a run and read the state of each: complete, waiting, under way, not started, or from elsewhere.

Reads manifests and the records of stages that wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhfctl.artifacts import MANIFEST, WORK, Artifact, find_artifact, read_json
from rlhfctl.graph import ELSEWHERE, STAGES, WAITING, Waiting, stages_of
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stage_order import in_order, place_of


def stages_in(recipe: Recipe, paths: RunPaths) -> list[StageId]:
    """List the stages of a run: those of its recipe, made on request, or of later rounds with a folder, in order."""
    asked = stages_of(recipe)
    extra = {name for name, stage in STAGES.items() if stage.on_request and name not in asked}
    asked_for = in_order(recipe)
    seeds = list(dict.fromkeys(stage.seed for stage in asked_for))  # None: shared by all seeds
    found = [stage for stage in paths.stages() if stage.name in STAGES]
    made = [one for one in found if one.round == 1 and one.name in extra and one.seed in (None, *seeds)]
    made = [one for one in made if (paths.stage(one) / MANIFEST).is_file()]
    later = [one for one in found if one.round > 1 and one not in asked_for]

    def position(one: StageId) -> tuple[bool, bool, int, tuple[float, int]]:
        seed = -1 if one.seed is None else seeds.index(one.seed) if one.seed in seeds else len(seeds)
        return one in later, bool(STAGES[one.name].gathers), seed, place_of(one)

    return sorted([*asked_for, *made, *later], key=position)


def read_stages(paths: RunPaths, stages: Sequence[StageId]) -> tuple[dict[StageId, str], dict[StageId, Artifact]]:
    """Return the state of each stage, and the artifacts of complete stages, in the order of `stages`.

    A state is complete, waiting, under way, not started, or from elsewhere.
    """
    found = {stage: find_artifact(paths.stage(stage)) for stage in stages}
    artifacts = {stage: made for stage, made in found.items() if made is not None}

    def state(stage: StageId) -> str:
        if stage in artifacts:
            return "complete"
        folder = paths.stage(stage)
        if folder.is_dir():
            return "under way" if waiting_at(folder) is None else "waiting"
        return ELSEWHERE if _given_from_elsewhere(stage, artifacts) else "not started"

    return {stage: state(stage) for stage in stages}, artifacts


def waiting_at(folder: Path) -> Waiting | None:
    """Return what the stage in `folder` waits for; None if it does not wait."""
    file = folder / WORK / WAITING
    return Waiting(**read_json(file)) if file.is_file() else None


def _given_from_elsewhere(stage: StageId, artifacts: Mapping[StageId, Artifact]) -> bool:
    """Tell whether a command named a model instead of a stage that the run lacks (`--policy`, `--reward-model`).

    `artifacts`: the run's complete stages. Their manifests record the path of each parent.
    """
    role = STAGES[stage.name].makes  # stages that read it use this role
    readers = [one for one in artifacts if stage.seed in (None, one.seed)]
    parents = [artifacts[one].manifest.parents.get(role) for one in readers]
    return any(parent is not None and not _lies_in(parent.path, stage) for parent in parents)


def _lies_in(path: str, stage: StageId) -> bool:
    return path == str(stage) or path.startswith(f"{stage}/")
