"""Make the folder of a sweep without training, and settings with given measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from made_run import make_run, manifest

from rlhfctl import stage_order
from rlhfctl.recipe.load import outline
from rlhfctl.report.facts.sweep import GOLD, HELDOUT, KL, SCORE, Estimate, Setting
from rlhfctl.sweeping import Combination, Grid, Sweep, write_sweep


def setting(name: str, scale: object = 1, **measures: float | Mapping[str, float]) -> Setting:
    found = {
        f"eval_{key}": Estimate.of(value if isinstance(value, Mapping) else {"": value})
        for key, value in measures.items()
    }
    return Setting(Combination(name, {"ppo.kl_coef": name}), None, True, found, {HELDOUT: scale, SCORE: scale})


def sweep_of(folder: Path, limit: float | None = None) -> Path:
    """A sweep of three runs: two complete ones, one that failed before its PPO."""
    names = {"kl_coef=0": (1.5, 9.0), "kl_coef=0.1": (1.25, 4.0)}
    for name, (heldout, kl) in names.items():
        run = make_run(folder / name, settings={"kl_coef": float(name.partition("=")[2])})
        metrics = {HELDOUT: heldout, SCORE: heldout + 1, KL: kl, GOLD: 0.5}
        manifest(run / "ppo", "ppo", metrics=metrics, parents=["base=sft", "reward=reward"], data=["data.prompts"])
        for stage in map(str, stage_order.in_order(outline(_named(run)))):
            if not (run / stage / "manifest.json").is_file():
                manifest(run / stage, stage)
    _named(make_run(folder / "kl_coef=1", finished=False))
    combinations = [
        Combination(name, {"ppo.kl_coef": name.partition("=")[2]}, "memory ran out" if name == "kl_coef=1" else None)
        for name in (*names, "kl_coef=1")
    ]
    write_sweep(folder, Sweep("tiny", "/tiny.yaml", [], Grid({"ppo.kl_coef": ["0", "0.1", "1"]}), limit, combinations))
    return folder


def _named(run: Path) -> Path:
    """Name the recipe as the program would, which made_run names after the folder; return its file."""
    file = run / "recipe.yaml"
    file.write_text(file.read_text().replace(f"name: {run.name}\n", "name: tiny\n"))
    return file
