"""Run a pipeline: skip unchanged stages, resume or start the others, and move aside the results that a change replaces.

Reads a resolved recipe and a run folder; writes recipe.yaml, events and the stages' folders. Deciding loads no torch.
Nothing is deleted or overwritten: results that a changed recipe replaces are moved to superseded/. Only the checkpoints
of a completed stage are removed. Leaves out the table of stages (graph.py), their inputs (inputs.py) and running one
(stages/door.py). Longer than 400 lines because whoever changes when a stage runs must see what follows for its folder.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhfctl import fs, graph, reward_card, run_stages, seeding, stage_order
from rlhfctl.artifacts import MANIFEST, WORK, Artifact, changed_inputs, find_artifact, load_artifact, read_json
from rlhfctl.errors import RewardFailed, WaitsForPeople
from rlhfctl.events import (
    Event,
    Note,
    RunStarted,
    StageFinished,
    StageWaiting,
    Warned,
    Work,
    report_progress_to,
)
from rlhfctl.graph import STAGES, WAITING, Request, Waiting, section_of
from rlhfctl.inputs import (
    data_of,
    describe_changes,
    inputs_of,
    parents_of,
    read_made_data,
    remade_data,
    section_fingerprint,
)
from rlhfctl.launching import Launcher
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import LoadedRecipe, differs_in_launch_alone, dump_recipe
from rlhfctl.recipe.made_data import data_at_start
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stage_process import launch
from rlhfctl.stages import door
from rlhfctl.stages.context import Context

_FAILED = "failed-function.json"  # in a stage's work folder: a reward function stopped it, and may be corrected
_CHANGES = "function-changes.json"  # there too: earlier reward functions, and the update until which each was used
_EXTENDS = "extends.json"  # there too: the complete stage that this one goes on from
_INPUTS = "inputs.json"  # in a stage's work folder: the inputs of its checkpoints

Emit = Callable[[Event], None]


def run(
    loaded: LoadedRecipe, run_dir: Path, request: Request, emit: Emit, launcher: Launcher | None = None
) -> list[Artifact]:
    """Run the stages that `request` asks for, in order, and return their artifacts.

    The caller holds the run's lock. All rows of all data sets (for a single stage: of the sets that it reads) are
    checked before the first model loads, except rows that a stage makes. With a `launcher` a stage runs in a process of
    its own, or in several. Raises WaitsForPeople if a stage waits.
    """
    with loaded.locating():
        return _run(_Run(loaded.recipe, RunPaths(run_dir), request, emit, launcher))


@dataclass
class _Run:
    """The state of one `run` command."""

    recipe: Recipe
    paths: RunPaths
    request: Request
    emit: Emit
    launcher: Launcher | None
    chosen: list[StageId] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)  # data set -> rows
    looked_ahead: bool = False
    unchecked: set[str] = field(default_factory=set)  # data sets made by a stage and not encoded yet
    warned: set[str] = field(default_factory=set)
    made_in: tuple[int, int | None] | None = None  # the round and seed whose stages have made the data sets in `data`

    def warn(self, stage: str, sentences: Sequence[str]) -> None:
        """Emit each warning once."""
        for sentence in sentences:
            if sentence not in self.warned:
                self.warned.add(sentence)
                self.emit(Warned(stage=stage, message=sentence))

    def inputs(self, stage: StageId) -> dict[str, str]:
        """Return the fingerprints of a stage's inputs."""
        return inputs_of(stage, self.recipe, self.paths, self.data, self.request)


def _run(work: _Run) -> list[Artifact]:
    """Check the request, read the data, and run the chosen stages in order."""
    recipe, request, emit = work.recipe, work.request, work.emit
    stage_order.require_sources(recipe)
    stages = stage_order.in_order(recipe)
    work.chosen = stage_order.choose(stages, request)
    seeding.require_own_samples(recipe, request.options)
    stage_order.require_parents(work.chosen, recipe, request)
    names = [str(stage) for stage in work.chosen]
    emit(RunStarted(stage="run", name=recipe.name, stages=names))
    emit(Note(stage="run", message=f"{', '.join(names)} in {work.paths.root}; checking data, loading libraries"))
    if left := seeding.left_over(work.paths.stages(), stages):
        emit(Note(stage="run", message=seeding.describe_left_over(left)))
    _read_data(work)
    if not request.keeps_recipe:
        _write_recipe(recipe, work.paths, emit)
    done = []
    for stage in stages:
        if stage in work.chosen:
            done.append(_bring_up_to_date(stage, work))
        else:
            _warn_of_changes(stage, stages, work)
        _stop_at_gate(stage, stages, work)
    return done


def _stop_at_gate(stage: StageId, stages: Sequence[StageId], work: _Run) -> None:
    """Raise GateClosed after the stage that makes the card, if the card does not pass `reward.gate`.

    A command for a single stage passes no gate, and neither does one that ends before the card.
    """
    passed = stage in work.chosen or seeding.stands_before(stage, work.chosen, stages)
    if STAGES[stage.name].makes == "card" and work.request.only is None and passed:
        reward_card.require_open_gate(load_artifact(work.paths.stage(stage)), work.recipe)


def _read_data(work: _Run) -> None:
    """Read the data sets that no stage makes; report rows that were left out, and leaked test prompts."""
    one = work.request.only is not None
    kinds = [stage.name for stage in work.chosen] if one else STAGES
    names = {name for kind in kinds for name in graph.data_of_kind(kind, work.recipe)}
    with report_progress_to(work.emit, "run"):
        with Work("loading libraries"):
            door.load_data_libraries()
        work.data = door.load_data(data_at_start(work.recipe.data), work.recipe.data_seed, names)
    _report_data(work, work.data)


def _report_data(work: _Run, new: Mapping[str, Any]) -> None:
    """Emit the notes of new data sets, and warnings about all data sets."""
    for rows in new.values():
        for sentence in rows.notes:
            work.emit(Note(stage="run", message=f"data.{rows.name}: {sentence}"))
    work.warn("run", door.data_warnings(work.data))


def _warn_of_changes(stage: StageId, stages: Sequence[StageId], work: _Run) -> None:
    """Warn if the new recipe differs from the recipe that an unselected stage was made from."""
    if work.request.only is None:
        if not seeding.stands_before(stage, work.chosen, stages):
            return
        artifact = load_artifact(work.paths.stage(stage))
        _read_made_data(stage, work)
        changed = changed_inputs(artifact.manifest.inputs, work.inputs(stage))
    else:
        made = find_artifact(work.paths.stage(stage))
        if made is None:
            return
        artifact = made
        same = made.manifest.inputs.get("section") == section_fingerprint(stage.name, work.recipe)
        changed = [] if same else ["section"]
    if changed:
        description = describe_changes(changed, artifact, stage.name, work.recipe)
        work.emit(Warned(stage=str(stage), message=f"is used as it is, though {description} changed since it was made"))


def _write_recipe(recipe: Recipe, paths: RunPaths, emit: Emit) -> None:
    """Write the resolved recipe; a different one from before is kept in superseded/."""
    text = dump_recipe(recipe)
    before = paths.recipe.read_text(encoding="utf-8") if paths.recipe.is_file() else text
    if before != text and not differs_in_launch_alone(before, text):
        kept = fs.move_aside(paths.recipe, paths.superseded)
        emit(Note(stage="run", message=f"the recipe changed; the one before is kept as {kept}"))
    if before != text or not paths.recipe.is_file():
        fs.write_atomic(paths.recipe, text)


# ---------------------------------------------------------------- one stage


def _bring_up_to_date(stage: StageId, work: _Run) -> Artifact:
    """Skip the stage if its inputs equal those in its manifest; else resume or start it."""
    began = time.monotonic()
    folder = work.paths.stage(stage)
    _read_made_data(stage, work)
    inputs = work.inputs(stage)
    artifact, goes_on = find_artifact(folder), False
    if artifact is not None and not work.request.force:
        changed = changed_inputs(artifact.manifest.inputs, inputs)
        if not changed:
            return _skip(stage, artifact, inputs, began, work.emit)
        description = describe_changes(changed, artifact, stage.name, work.recipe)
        goes_on = changed == ["section"] and door.can_extend(stage.name, artifact, section_of(stage.name, work.recipe))
        verb = "goes on from where it ended" if goes_on else "runs again"
        work.emit(Note(stage=str(stage), message=f"{verb}: changed {description}"))
    if not work.request.force and (twin := _twin_of(stage, inputs, work.request.siblings)) is not None:
        return _take_over(twin, stage, inputs, began, work)
    with report_progress_to(work.emit, str(stage)), Work("loading libraries"):
        _look_ahead(stage, work)
        door.load_libraries(stage.name)
    restarted = _move_aside_or_resume(stage, inputs, work, goes_on)
    context = Context(
        str(stage),
        seeding.recipe_of(stage, work.recipe),
        work.paths,
        parents_of(stage, work.recipe, work.paths, work.request),
        inputs,
        work.data,
        work.emit,
        dict(work.request.options) | {"restarted": restarted} | _extended(folder),
        began=began,
    )
    return _run_stage(stage, context, work)


def _skip(stage: StageId, artifact: Artifact, inputs: Mapping[str, str], began: float, emit: Emit) -> Artifact:
    """Verify a complete stage and report that it is skipped."""
    with report_progress_to(emit, str(stage)), Work("checking what is there"):
        artifact.verify()
    _remove_work(artifact.path)
    emit(Note(stage=str(stage), message=f"skipped: unchanged ({', '.join(sorted(inputs))})"))
    seconds, metrics = time.monotonic() - began, artifact.manifest.metrics
    emit(StageFinished(stage=str(stage), path=str(artifact.path), seconds=seconds, metrics=metrics, skipped=True))
    return artifact


def _twin_of(stage: StageId, inputs: Mapping[str, str], siblings: Sequence[Path]) -> Artifact | None:
    """Return the complete stage of another run of the same sweep that was made from equal inputs; None without one."""
    found = (find_artifact(RunPaths(sibling).stage(stage)) for sibling in siblings)
    equal = (artifact for artifact in found if artifact is not None)
    return next((artifact for artifact in equal if not changed_inputs(artifact.manifest.inputs, inputs)), None)


def _take_over(twin: Artifact, stage: StageId, inputs: Mapping[str, str], began: float, work: _Run) -> Artifact:
    """Make a complete stage of another run this run's, too: the same files under a second name, without a copy.

    What was there is moved aside. The folder appears in one step, so a kill leaves a whole stage or none.
    """
    folder = work.paths.stage(stage)
    if folder.is_dir() and _has_results(folder):
        kept = fs.move_aside(folder, work.paths.superseded_stages(stage))
        work.emit(Note(stage=str(stage), message=f"what was there is kept in {kept}"))
    with fs.publish_folder(folder) as new:
        fs.link_tree(twin.path, new, skip=WORK)
    work.emit(Note(stage=str(stage), message=f"taken over from {twin.path}: made from equal inputs"))
    return _skip(stage, load_artifact(folder), inputs, began, work.emit)


def _run_stage(stage: StageId, context: Context, work: _Run) -> Artifact:
    """Run the stage in this process or with the launcher; raise WaitsForPeople if it cannot continue yet."""
    for name in (_FAILED, WAITING):
        (context.work / name).unlink(missing_ok=True)
    for change in read_json(context.work / _CHANGES) if (context.work / _CHANGES).is_file() else ():
        context.note(_describe_change(change))
    try:
        if work.launcher is None or (work.launcher.shared_only and not STAGES[stage.name].shared):
            made, peak = door.run_stage(stage.name, section_of(stage.name, work.recipe), context)
        else:
            made, peak = launch(work.launcher, context)
    except RewardFailed:
        fs.write_json(context.work / _FAILED, {"functions": context.inputs.get("functions")})
        raise
    if isinstance(made, Waiting):
        fs.write_json(context.work / WAITING, asdict(made))
        work.emit(StageWaiting(stage=str(stage), message=str(made)))
        raise WaitsForPeople(made.what, where=str(stage), fix=f"{made.how}; then give the same command again")
    _remove_work(context.folder)
    seconds, metrics = made.manifest.seconds, made.manifest.metrics
    path = str(context.folder)
    work.emit(StageFinished(stage=str(stage), path=path, seconds=seconds, metrics=metrics, peak_memory=peak))
    return made


def _read_made_data(stage: StageId, work: _Run) -> None:
    """Read the data sets of the stage that other stages have made."""
    if (stage.round, stage.seed) != work.made_in:
        work.made_in = stage.round, stage.seed
        work.data = {name: rows for name, rows in work.data.items() if name not in remade_data(work.recipe)}
        work.unchecked &= set(work.data)
    with report_progress_to(work.emit, str(stage)):
        made = read_made_data(stage, work.recipe, work.paths, work.data)
    if made:
        work.data |= made
        work.unchecked |= set(made)
        _report_data(work, made)


def _look_ahead(stage: StageId, work: _Run) -> None:
    """Check all stages to come before the first one runs: an error in a later stage must not cost hours.

    After rows were encoded with a tokenizer once, only rows that a stage has made since then are checked.
    """
    base = graph.base_among(stage.name, parents_of(stage, work.recipe, work.paths, work.request))
    if not work.looked_ahead:
        to_come = list(dict.fromkeys(one.name for one in work.chosen[work.chosen.index(stage) :]))
        reward = work.request.external.get("reward")
        kept, warnings, work.looked_ahead = door.look_ahead(
            work.recipe, to_come, base, work.data, work.paths.log, reward,
            samples="policy_samples" in work.request.options,
        )  # fmt: skip
    elif work.unchecked:
        rows = {name: work.data[name] for name in work.unchecked}
        kept, warnings = door.check_rows(work.recipe, stage.name, base, rows, work.paths.log)
    else:
        return
    work.unchecked.clear()
    work.data |= kept  # stages read only rows that the template accepts
    work.warn(str(stage), warnings)


def _extended(folder: Path) -> dict[str, str]:
    """Return the option that names the complete stage which an attempt goes on from; empty without one."""
    marker = folder / WORK / _EXTENDS
    return {"extends": str((folder / read_json(marker)).resolve())} if marker.is_file() else {}


def _move_aside_or_resume(stage: StageId, inputs: Mapping[str, str], work: _Run, goes_on: bool) -> bool:
    """Move aside results made from other inputs; keep results to resume from. Returns whether an attempt is resumed.

    `goes_on`: the new attempt goes on from the complete stage that is moved aside.
    """
    folder = work.paths.stage(stage)
    if not work.request.force and not (folder / MANIFEST).is_file() and _has_attempt(folder, inputs):
        _record_changed_function(folder, inputs)
        return True
    marker = folder / WORK / _INPUTS
    if folder.is_dir() and _has_results(folder):
        kept = fs.move_aside(folder, work.paths.superseded_stages(stage))
        work.emit(Note(stage=str(stage), message=f"what was there is kept in {kept}"))
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        if goes_on:
            fs.write_json(folder / WORK / _EXTENDS, os.path.relpath(kept, folder))
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    fs.write_json(marker, dict(inputs))
    return False


def _has_attempt(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Tell whether `folder` holds an attempt with the same inputs."""
    marker = folder / WORK / _INPUTS
    if not marker.is_file():
        return False
    changed = changed_inputs(json.loads(marker.read_text()), inputs)
    return not changed or (changed == ["functions"] and (folder / WORK / _FAILED).is_file())


def _record_changed_function(folder: Path, inputs: Mapping[str, str]) -> None:
    """Record that an attempt that a reward function stopped resumes with the changed function."""
    marker, changes = folder / WORK / _INPUTS, folder / WORK / _CHANGES
    was = json.loads(marker.read_text())
    if changed_inputs(was, inputs) != ["functions"]:
        return
    steps = [int(path.name.rpartition("-")[2]) for path in (folder / WORK).glob("checkpoint-*") if path.is_dir()]
    change = {"update": max(steps, default=0), "from": was["functions"], "to": inputs["functions"]}
    fs.write_json(changes, [*(read_json(changes) if changes.is_file() else []), change])
    fs.write_json(marker, dict(inputs))


def _describe_change(change: Mapping[str, Any]) -> str:
    """Describe a change of the reward functions."""
    old, new = (str(change[key])[:12] for key in ("from", "to"))
    return f"the reward functions changed at update {change['update']}: {old} before, {new} since"


def _has_results(folder: Path) -> bool:
    """Tell whether a folder holds more than the temporary files of an attempt that was killed at its start."""
    return any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*"))


def _remove_work(folder: Path) -> None:
    """Remove the checkpoints of a complete stage, whose manifest is written."""
    if (folder / WORK).is_dir():
        shutil.rmtree(folder / WORK)


# ---------------------------------------------------------------- plan of a run


@dataclass(frozen=True)
class Forecast:
    """The plan for one stage: the action that a run would take, and the reason."""

    stage: StageId
    action: Literal["run", "continue", "wait", "skip"]
    why: str


def forecast(loaded: LoadedRecipe, run_dir: Path, data: Mapping[str, Any], request: Request) -> list[Forecast]:
    """Plan each stage of the recipe: whether it would run, continue from a checkpoint, wait, or be skipped.

    `data`: rows from load.check_all, and those that stages have made, if these stages are complete.
    """
    recipe, paths = loaded.recipe, RunPaths(run_dir)
    stages = stage_order.in_order(recipe)
    chosen = stage_order.choose(stages, request)
    forecasts: list[Forecast] = []
    anew: set[StageId] = set()
    closed: str | None = None  # why the gate is closed
    for stage in stages:
        if stage not in chosen:
            forecasts.append(Forecast(stage, "skip", "not asked for"))
            continue
        if closed is not None:
            forecasts.append(Forecast(stage, "wait", closed))
            continue
        waits_for = [str(parent) for parent in stage_order.own_parents(stage, recipe, stages) if parent in anew]
        if waits_for:
            forecasts.append(Forecast(stage, "run", f"on the new {', '.join(waits_for)}"))
        else:
            inputs = inputs_of(stage, recipe, paths, data_of(stage, recipe, paths, data), request)
            forecasts.append(_forecast(stage, recipe, paths, inputs, request.force))
        if forecasts[-1].action != "skip":
            anew.add(stage)
        elif STAGES[stage.name].makes == "card":
            closed = reward_card.closed(load_artifact(paths.stage(stage)), recipe)
    return forecasts


def _forecast(stage: StageId, recipe: Recipe, paths: RunPaths, inputs: Mapping[str, str], force: bool) -> Forecast:
    """Plan one stage whose parents are complete."""
    folder = paths.stage(stage)
    artifact = find_artifact(folder)
    if force:
        return Forecast(stage, "run", "--force")
    if artifact is not None:
        changed = changed_inputs(artifact.manifest.inputs, inputs)
        if not changed:
            return Forecast(stage, "skip", "complete, and nothing that it depends on changed")
        what = describe_changes(changed, artifact, stage.name, recipe)
        if changed == ["section"] and door.can_extend(stage.name, artifact, section_of(stage.name, recipe)):
            return Forecast(stage, "continue", f"goes on from where it ended: changed {what}")
        return Forecast(stage, "run", f"changed: {what}")
    if not _has_attempt(folder, inputs):
        return Forecast(stage, "run", "nothing is there yet")
    if (waiting := run_stages.waiting_at(folder)) is not None:
        return Forecast(stage, "wait", str(waiting))
    return Forecast(stage, "continue", "begun with the same inputs")
