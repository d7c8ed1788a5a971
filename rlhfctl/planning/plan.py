"""Predict what a run of a recipe does and needs, before it runs: `rlhfctl plan`.

    rows, tokenizer ──▶ lengths ──┬─▶ steps, tokens
    recipe, config.json ──────────┴─▶ memory by role and kind (memory.py), disk ──▶ does it fit, what to change
    run folder ───────▶ which stages run, resume, are skipped, and why

Loads rows and the tokenizer, no weights. `--probe` really runs one step of each stage in a temporary folder next to the
run folder, and reports the measured memory instead of the prediction. Writes nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlhfctl import graph, pipeline, stage_order
from rlhfctl.graph import Request
from rlhfctl.inputs import read_made_data
from rlhfctl.models import devices, loading
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.planning.advice import Advice, Fit, advise, fit
from rlhfctl.planning.machine import memory_bytes
from rlhfctl.planning.probe import probed
from rlhfctl.planning.row_lengths import Lengths
from rlhfctl.planning.stages import Disk, StagePlan, stage_plan
from rlhfctl.recipe.load import LoadedRecipe
from rlhfctl.recipe.made_data import data_at_start
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import door
from rlhfctl.training.trl import options

CUDA_BYTES = 500_000_000  # memory of CUDA and its kernels without tensors; a usual figure, not measured here


@dataclass(frozen=True)
class Plan:
    """The prediction for a run. All sizes are in bytes. `overhead`: memory of libraries and rows without tensors.

    Memory is that of one process. `processes`: how many share a training stage. `beside`: how many of them share the
    memory `limit`; on GPUs each has one of its own.
    """

    name: str
    device: str
    limit: int | None
    overhead: int
    free_disk: int
    stages: tuple[StagePlan, ...]
    advice: tuple[Advice, ...]
    disk: Disk
    processes: int = 1
    beside: int = 1

    def total(self, stage: StagePlan) -> int | None:
        """Return the peak memory of a stage: measured if a probe ran, otherwise predicted; None if unknown."""
        if stage.measured is not None:
            return stage.measured
        return None if stage.outlook is None else self.overhead + stage.outlook.peak.total

    def fit(self, stage: StagePlan) -> Fit | None:
        return fit(self.total(stage), self.limit_of(stage.name))

    def limit_of(self, stage: str) -> int | None:
        """Return the memory that one process of a stage may use."""
        shared = graph.STAGES[StageId.parse(stage).name].shared
        return self.limit // self.beside if self.limit is not None and shared else self.limit

    def to_json(self) -> dict[str, Any]:
        """Convert the plan to JSON values, for scripts."""
        return {
            "name": self.name,
            "device": self.device,
            "memory_limit": self.limit,
            "memory_overhead": self.overhead,
            "processes": self.processes,
            "disk": {"highest": self.disk.highest, "kept": self.disk.kept, "free": self.free_disk},
            "stages": [self._stage(stage) for stage in self.stages],
            "advice": [{"stage": one.stage, "set": list(one.settings), "memory": one.total} for one in self.advice],
        }

    def _stage(self, stage: StagePlan) -> dict[str, Any]:
        outlook = stage.outlook
        return {
            "name": stage.name,
            "action": stage.action,
            "why": stage.why,
            "rows": stage.rows,
            "steps": stage.steps,
            "tokens": stage.tokens,
            "parameters": None if outlook is None else outlook.parameters,
            "trainable": None if outlook is None else outlook.trainable,
            "memory": self.total(stage),
            "predicted": None if outlook is None else self.overhead + outlook.peak.total,
            "measured": stage.measured,
            "fit": self.fit(stage),
            "peak": None if outlook is None else {"moment": outlook.peak.what, "needs": outlook.peak.needs},
            "moments": {} if outlook is None else {one.what: one.total for one in outlook.moments},
            "disk": {"highest": stage.disk.highest, "kept": stage.disk.kept},
            "note": stage.note,
        }


# ---------------------------------------------------------------- the whole plan


def plan(
    load: Callable[[Sequence[str]], LoadedRecipe],
    run_dir: Path | None = None,
    request: Request | None = None,
    *,
    limit: int | None = None,
    probe: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Plan:
    """Plan a run. `load` loads the recipe with additional settings. `limit`: memory in bytes of another device."""
    loaded = load(())
    with loading.silence_libraries(), loaded.locating():
        return _plan(loaded, load, run_dir, request or Request(), limit, probe, say)


def _plan(
    loaded: LoadedRecipe,
    load: Callable[[Sequence[str]], LoadedRecipe],
    run_dir: Path | None,
    request: Request,
    limit: int | None,
    probe: bool,
    say: Callable[[str], None],
) -> Plan:
    recipe = loaded.recipe
    folder = run_dir or Path("runs") / recipe.name
    stage_order.require_sources(recipe)
    rows = _rows(recipe, RunPaths(folder))
    forecasts = pipeline.forecast(loaded, folder, rows, request)
    options.check_trainers(graph.trainer_options(recipe))
    lengths = Lengths.of(recipe, rows)
    overhead = CUDA_BYTES if torch.cuda.is_available() else devices.resident_bytes()
    device, device_memory = _device()
    limit = limit if limit is not None else device_memory
    stages = [stage_plan(forecast, recipe, lengths, rows) for forecast in forecasts]
    if probe:
        beside = overhead if torch.cuda.is_available() else 0  # a process's resident size holds its libraries
        stages = probed(stages, loaded, folder, beside, say)
    active = [stage for stage in stages if stage.action != "skip"]
    complete = Plan(
        recipe.name,
        device,
        limit,
        overhead,
        shutil.disk_usage(next(parent for parent in folder.absolute().parents if parent.is_dir())).free,
        tuple(stages),
        (),
        _sum(active),
        recipe.launch.num_processes if recipe.launch is not None else 1,
        recipe.launch.local_processes if recipe.launch is not None and not torch.cuda.is_available() else 1,
    )
    advice = [
        advise(stage, load, lengths, overhead, most)
        for stage in active
        if (most := complete.limit_of(stage.name)) is not None and complete.fit(stage) == "does not fit"
    ]
    return replace(complete, advice=tuple(one for one in advice if one is not None))


def _rows(recipe: Recipe, paths: RunPaths) -> dict[str, Any]:
    """Read the data sets, including those that completed stages of this run have made."""
    stages = stage_order.in_order(recipe)
    names = {name for kind in graph.STAGES.values() for name in kind.data}
    rows = door.load_data(data_at_start(recipe.data), recipe.data_seed, names)
    for stage in stages:
        rows |= read_made_data(stage, recipe, paths, rows)
    return rows


def _device() -> tuple[str, int | None]:
    """Name this device and its memory in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    total, free = memory_bytes()
    name = "Apple GPU, memory shared" if torch.backends.mps.is_available() else "CPU"
    return name, free + devices.resident_bytes() if free is not None else total


def _sum(stages: Sequence[StagePlan]) -> Disk:
    """Add up the disk of stages that run one after the other; the kept bytes of each stay."""
    kept = highest = 0
    for stage in stages:
        highest = max(highest, kept + stage.disk.highest)
        kept += stage.disk.kept
    return Disk(max(highest, kept), kept)
