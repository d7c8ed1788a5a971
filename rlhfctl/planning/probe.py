"""Measure the memory of each stage by really running one step of it, in a run folder that is removed afterwards."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhfctl.errors import RlhfctlError
from rlhfctl.events import StageFinished, from_record
from rlhfctl.graph import STAGES, trainer_options
from rlhfctl.paths import RunPaths
from rlhfctl.planning.stages import StagePlan
from rlhfctl.recipe.load import LoadedRecipe
from rlhfctl.recipe.schema import Recipe


def probed(
    stages: Sequence[StagePlan], loaded: LoadedRecipe, folder: Path, beside: int, say: Callable[[str], None]
) -> list[StagePlan]:
    """Run one step per stage in a temporary folder; set `measured` to the peak memory plus `beside` bytes."""
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".rlhfctl-probe-", dir=parent) as temporary:
        run = Path(temporary) / "run"
        recipe = Path(temporary) / "recipe.yaml"
        recipe.write_text(json.dumps(one_step(loaded.recipe)), encoding="utf-8")
        say("probe: one step of each stage, in a folder that is removed afterwards")
        command = [sys.executable, "-m", "rlhfctl", "run", str(recipe), "--run-dir", str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        finished = {event.stage: event for event in _finished(RunPaths(run).events)}
        if done.returncode and not finished:
            raise RlhfctlError(
                f"the probe stopped:\n{(done.stderr or done.stdout).strip()[-1500:]}",
                where="--probe",
                fix="mend what stopped it, or leave out --probe: the plan is then an estimate",
            )
        if done.returncode:
            say(f"probe: stopped after {', '.join(finished)}: {done.stderr.strip().splitlines()[-1]}")
    took = {name: event.peak_memory + beside for name, event in finished.items() if event.peak_memory is not None}
    return [replace(stage, measured=took.get(stage.name)) for stage in stages]


def _finished(events: Path) -> Iterator[StageFinished]:
    if events.is_file():
        for line in events.read_text(encoding="utf-8").splitlines():
            event = from_record(json.loads(line))
            if isinstance(event, StageFinished):
                yield event


def one_step(recipe: Recipe) -> dict[str, Any]:
    """Reduce the resolved recipe to one step per stage, with the same sizes and no more rows than needed."""
    given = recipe.model_dump(mode="json")
    for name in {STAGES[stage].section for stage in trainer_options(recipe)}:
        if "trainer" in given[name]:  # a ready reward model has none
            given[name]["trainer"] = given[name]["trainer"] | {"max_steps": 1}
            given[name].pop("checkpoint_steps", None)
    if recipe.reward is not None and (card := recipe.reward.resolved_card) is not None:
        given["reward"].pop("gate", None)  # a model of one step would not pass it
        at_once = recipe.ppo.local_rollout_forward_batch_size if recipe.ppo is not None else card.prompts
        samples = min(card.samples, max(2, math.ceil(at_once / card.prompts)))
        given["reward"]["card"] = {"prompts": card.prompts, "samples": samples}
    if recipe.ppo is not None:
        given["ppo"] |= {"total_episodes": recipe.ppo.batch_size}
    if recipe.compare is not None:
        given["compare"] |= {"samples_per_prompt": 1, "controls": None}
        prompts = given["data"]["prompts"]
        prompts["test"] = min(prompts["test"], recipe.compare.batch_size)
    return given
