"""`rlhfctl sweep`: run a grid of settings, one run per combination, and share the stages that are equal among them.

    grid ──▶ recipes, all of them checked ──▶ one run after the other ──▶ sweep.json, events.jsonl
                                                  ▲      │
                          complete stages with equal inputs are taken over

Each combination is a run folder like any other, which the pipeline brings up to date; the pipeline also decides what is
shared, by the fingerprints of a stage's inputs. A combination that fails is noted, and the others go on. Leaves out the
report (report/sweep.py).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from rlhfctl import errors, fs, graph, inputs, pipeline, stage_order
from rlhfctl.artifacts import load_artifact, manifests_in
from rlhfctl.dashboard.jsonl import JsonlWriter
from rlhfctl.dashboard.text import counted, duration, visible
from rlhfctl.errors import DiskFull, OutputClosed, Problem, RecipeError, RlhfctlError, WaitsForPeople
from rlhfctl.events import Event, Note, RunStarted, RunStopped, StageFinished, StageStarted, Warned
from rlhfctl.graph import Request
from rlhfctl.launching import launcher_of
from rlhfctl.paths import EVENTS, LOCK, RECIPE, RunPaths, StageId
from rlhfctl.recipe.load import LoadedRecipe, dump_recipe, find_recipe, load_recipe
from rlhfctl.recipe.made_data import data_at_start
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import door
from rlhfctl.sweeping import SWEEP, Combination, Sweep, is_sweep, read_grid, read_sweep, write_sweep
from rlhfctl.tools import runs, trackers

Emit = Callable[[Event], None]

_ENDS_ALL = (WaitsForPeople, OutputClosed, DiskFull)  # errors that are no matter of one combination


@dataclass(frozen=True)
class Planned:
    """One combination with its valid recipe."""

    combination: Combination
    loaded: LoadedRecipe

    @property
    def folder(self) -> str:
        return self.combination.folder

    @cached_property
    def stages(self) -> Mapping[StageId, str]:
        """A hash of what decides on each stage, in the order of a run: stages with equal hashes are shared."""
        return inputs.foreseen(self.loaded.recipe)


# ---------------------------------------------------------------- before anything runs


def plan(
    recipe: str, words: Sequence[str], settings: Sequence[str], launched: Sequence[str], kl_limit: float | None
) -> tuple[Sweep, list[Planned]]:
    """Load the recipe of every combination; RecipeError has the faults of all of them.

    `settings`: `--set` values that all combinations share. `launched`: settings that change no result. `kl_limit` is in
    nats per response; None: that of the recipe's `ppo.best_kl_limit`, if it has one.
    """
    grid, file = read_grid(words), find_recipe(recipe)
    planned: list[Planned] = []
    problems: list[Problem] = []
    for one in grid.combinations():
        try:
            loaded = load_recipe(file, [*settings, *launched, *grid.overrides, *one.overrides])
            with loaded.locating():
                _require_runnable(loaded.recipe)
            planned.append(Planned(one, loaded))
        except RecipeError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise RecipeError(problems)
    _require_different(planned)
    _check_trainers(planned)
    trackers.require(planned[0].loaded.recipe.report_to)
    first = planned[0].loaded.recipe
    if kl_limit is None and first.ppo is not None and "ppo.best_kl_limit" not in grid.axes:
        kl_limit = first.ppo.best_kl_limit
    combinations = [one.combination for one in planned]
    return Sweep(first.name, str(planned[0].loaded.path), [*settings], grid, kl_limit, combinations), planned


def _require_runnable(recipe: Recipe) -> None:
    """Raise RecipeError if a recipe needs what a sweep cannot give."""
    stage_order.require_sources(recipe)
    if recipe.launch is not None and recipe.launch.num_machines > 1:
        what, fix = "a sweep runs on one machine", "set it to 1, or divide the grid into a sweep per machine"
        raise RecipeError([Problem("launch.num_machines", what, fix=fix)])


def _require_different(planned: Sequence[Planned]) -> None:
    """Raise RecipeError if two combinations are the same recipe: `0.1` and `1e-1`, or a key that has no effect."""
    seen: dict[str, Planned] = {}
    problems = []
    for one in planned:
        before = seen.setdefault(dump_recipe(one.loaded.recipe), one)
        if before is not one:
            what = f"the combinations {before.folder} and {one.folder} are the same recipe"
            problems.append(Problem("", what, fix="leave one of the values out"))
    if problems:
        raise RecipeError(problems)


def _check_trainers(planned: Sequence[Planned]) -> None:
    """Check the options under every `trainer:` against the installed TRL, each set of options once."""
    from rlhfctl.training.trl import options  # it loads torch

    seen = []
    for one in planned:
        given = graph.trainer_options(one.loaded.recipe)
        if given not in seen:
            seen.append(given)
            with one.loaded.locating():
                options.check_trainers(given, one.loaded.recipe.model.dtype)


def forecast(planned: Sequence[Planned], folder: Path) -> tuple[Table, list[str]]:
    """Foresee a sweep: a table of what each combination would run, share or skip; and sentences on work and time."""
    took = _seconds_by_kind([folder / one.folder for one in planned])
    states = _foreseen_states(planned, folder)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("combination", "stages", "time"):
        table.add_column(heading, overflow="fold")
    for one, known in zip(planned, states, strict=True):
        due = [stage.name for stage, state in known.items() if state in ("to run", "to go on")]
        time = _time(due, took) if due else "-"
        table.add_row(visible(one.folder), runs.progress({str(stage): state for stage, state in known.items()}), time)
    every = [(stage.name, state) for known in states for stage, state in known.items()]
    due = [name for name, state in every if state in ("to run", "to go on")]
    shared, complete = (sum(state == wanted for _, state in every) for wanted in ("shared", "complete"))
    total = (
        f"{counted(len(planned), 'combination')}, {counted(len(every), 'stage')}: {len(due)} to run, {shared} shared, "
        f"{complete} complete"
    )
    if not due:
        return table, [total]
    known_time = f"time: about {_time(due, took)}, from what stages of this sweep took"
    unknown = (
        "time: not known before a combination has run; `rlhfctl plan RECIPE` counts the steps and the memory of one"
    )
    return table, [total, known_time if any(name in took for name in due) else unknown]


def _foreseen_states(planned: Sequence[Planned], folder: Path) -> list[dict[StageId, str]]:
    """Return the state that each stage of each combination would have: complete, shared, to go on, to run, waiting."""
    rows: dict[str, Mapping[str, Any]] = {}
    found: list[dict[StageId, str]] = []
    words = {"skip": "complete", "continue": "to go on", "wait": "waiting", "run": "to run"}
    for one in planned:
        paths, recipe = RunPaths(folder / one.folder), one.loaded.recipe
        states = dict.fromkeys(one.stages, "to run")
        if paths.recipe.is_file():
            key = fs.hash_json([recipe.data.model_dump(mode="json"), recipe.data_seed])
            if key not in rows:
                rows[key] = door.load_data(data_at_start(recipe.data), recipe.data_seed, _data_sets(recipe))
            data = dict(rows[key])
            for stage in one.stages:
                data |= inputs.read_made_data(stage, recipe, paths, data)
            foreseen = pipeline.forecast(one.loaded, paths.root, data, Request())
            states = {entry.stage: words[entry.action] for entry in foreseen}
        found.append(states)
    makers = {
        one.stages[stage]
        for one, states in zip(planned, found, strict=True)
        for stage, state in states.items()
        if state == "complete"
    }
    for one, states in zip(planned, found, strict=True):
        for stage, key in one.stages.items():
            if states[stage] != "complete" and key in makers:
                states[stage] = "shared"
            makers.add(key)
    return found


def _data_sets(recipe: Recipe) -> set[str]:
    return {name for kind in graph.STAGES for name in graph.data_of_kind(kind, recipe)}


def _seconds_by_kind(folders: Sequence[Path]) -> dict[str, float]:
    """Return the mean seconds of the complete stages of each kind."""
    taken: dict[str, list[float]] = {}
    for file in (file for folder in folders for file in manifests_in(folder)):
        made = load_artifact(file.parent)
        taken.setdefault(made.stage.name, []).append(made.manifest.seconds)
    return {name: fmean(seconds) for name, seconds in taken.items()}


def _time(names: Sequence[str], took: Mapping[str, float]) -> str:
    """Write the time that stages will take, and name those for which it is not known."""
    unknown = list(dict.fromkeys(name for name in names if name not in took))
    known = sum(took[name] for name in names if name in took)
    if not known:
        return "not known"
    return duration(known) + (f" + {', '.join(unknown)}" if unknown else "")


# ---------------------------------------------------------------- running


def require_free(folder: Path) -> None:
    """Raise RlhfctlError if the folder is a run's: a sweep's runs lie in folders below it."""
    if (folder / RECIPE).is_file():
        raise RlhfctlError("is the folder of a run", where=str(folder), fix="name another folder with --run-dir")


def run(sweep: Sweep, planned: Sequence[Planned], folder: Path, emit: Emit) -> Sweep:
    """Bring every combination up to date, one after the other; return the record with the errors of those that failed.

    The caller holds the sweep's lock. What ends the command is a signal, a full disk, a closed output and a stage that
    waits for people; any other error ends its combination alone.
    """
    sweep = _begin(sweep, planned, folder, emit)
    failed: dict[str, str] = {}  # hash of a stage that failed -> why
    for number, one in enumerate(planned, 1):
        emit(Note(stage=one.folder, message=f"combination {number} of {len(planned)}"))
        known = next((failed[key] for key in one.stages.values() if key in failed), None)
        if known is not None:
            emit(Warned(stage=one.folder, message=known))
            sweep = _record(sweep, one, known, folder)
            continue
        siblings = tuple(folder / other.folder for other in planned if other is not one)
        attempt = _Attempt(one, folder / one.folder, siblings, emit)
        try:
            attempt.run()
            error = None
        except _ENDS_ALL:
            raise
        except Exception as raised:
            emit(Warned(stage=one.folder, message=f"failed: {_said(raised)}"))  # after a signal this raises
            if fs.is_disk_full(raised, folder):
                raise
            error = _said(raised)
            if not isinstance(raised, RlhfctlError) and errors.out_of_memory(raised) is None:
                _keep_traceback(RunPaths(attempt.root).log)
        if error is not None and attempt.began is not None:
            failed[one.stages[attempt.began]] = (
                f"shares the stage {attempt.began} with {one.folder}, which failed there"
            )
        sweep = _record(sweep, one, error, folder)
    if broken := [one.folder for one in sweep.combinations if one.error is not None]:
        emit(RunStopped(stage="run", reason=f"{counted(len(broken), 'combination')} failed: {', '.join(broken)}"))
    return sweep


def _begin(sweep: Sweep, planned: Sequence[Planned], folder: Path, emit: Emit) -> Sweep:
    """Write the record, and say what is to come. A record of another grid or recipe is kept in superseded/."""
    if is_sweep(folder):
        before = read_sweep(folder)
        if _asked(before) != _asked(sweep):
            kept = fs.move_aside(folder / SWEEP, RunPaths(folder).superseded)
            emit(Note(stage="run", message=f"the grid or the recipe changed; the record before is kept as {kept}"))
    write_sweep(folder, sweep)
    names = [f"{one.folder}/{stage}" for one in planned for stage in one.stages]
    emit(RunStarted(stage="run", name=sweep.name, stages=names))
    emit(Note(stage="run", message=f"{counted(len(planned), 'combination')} in {folder}"))
    return sweep


def _asked(sweep: Sweep) -> Sweep:
    """Return the record without what came of it."""
    return replace(
        sweep,
        settings=list(sweep.settings),
        grid=replace(sweep.grid, axes={key: list(v) for key, v in sweep.grid.axes.items()}, seeds=[*sweep.grid.seeds]),
        combinations=[replace(one, error=None) for one in sweep.combinations],
    )


def _record(sweep: Sweep, one: Planned, error: str | None, folder: Path) -> Sweep:
    changed = sweep.with_error(one.folder, error)
    write_sweep(folder, changed)
    return changed


def _said(error: Exception) -> str:
    """Write an error as `run` would print it, or name a defect."""
    known = errors.out_of_memory(error) or error
    return str(known) if isinstance(known, RlhfctlError) else f"{type(error).__name__}: {error}"


def _keep_traceback(log: Path) -> None:
    """Append the traceback of the error at hand, which is a defect, to the run's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(traceback.format_exc())


@dataclass
class _Attempt:
    """One run of a combination: its events go into its own folder, and under its name to the sweep's listeners."""

    planned: Planned
    root: Path
    siblings: tuple[Path, ...]
    emit: Emit
    began: StageId | None = None  # the stage whose training has begun and not ended

    def run(self) -> None:
        """Bring the combination's run up to date."""
        loaded, paths = self.planned.loaded, RunPaths(self.root)
        recipe = loaded.recipe
        with fs.RunLock(paths.lock), JsonlWriter(paths.events) as writer:

            def tell(event: Event) -> None:
                writer(event)
                self._tell_sweep(event)

            name = f"{recipe.name} {self.planned.folder}"
            try:
                with trackers.tracking(recipe.report_to, self.root, name, tell) as emit:
                    request = Request(siblings=self.siblings)
                    pipeline.run(loaded, self.root, request, emit, launcher_of(recipe.launch))
            except BaseException as error:
                reason = _said(error) if isinstance(error, Exception) else "the sweep was stopped"
                writer(RunStopped(stage="run", reason=reason))
                raise

    def _tell_sweep(self, event: Event) -> None:
        """Pass an event on under the combination's name; the sweep itself says when it starts and stops."""
        if isinstance(event, StageStarted):
            self.began = StageId.parse(event.stage)
        elif isinstance(event, StageFinished):
            self.began = None
        if not isinstance(event, RunStarted | RunStopped):
            self.emit(replace(event, stage=f"{self.planned.folder}/{event.stage}"))


def lock_of(folder: Path) -> fs.RunLock:
    """Return the lock of a sweep's folder."""
    return fs.RunLock(folder / LOCK)


def events_of(folder: Path) -> Path:
    """Return the file of a sweep's events."""
    return folder / EVENTS
