"""Lay out a sweep: the grid of values that a command states, its combinations, and the record in the sweep's folder.

    ppo.kl_coef=0,0.05 reward.lora.r=4,8 seed=0,1  ──▶  kl_coef=0,r=4  kl_coef=0,r=8  kl_coef=0.05,r=4  ...

Each combination is a run of its own in a folder of the sweep's folder. `seed` is no part of the combinations: its
values become the `seeds` of each run. Reads and writes `sweep.json`. Leaves out running (tools/sweep.py) and what the
results mean (report/facts/sweep.py).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import Problem, RecipeError, RlhfctlError
from rlhfctl.paths import RECIPE
from rlhfctl.recipe.reading import list_items

SWEEP = "sweep.json"
FORMAT = 1
SEED = "seed"

_AXIS = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(.*)", re.DOTALL)
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=,-]+")
_LONGEST_FOLDER = 100  # characters
_DIGITS = 8  # of a hash, where a folder's name cannot hold the values
# Keys that a grid may not vary, and the way out.
_NO_AXES = {
    "seeds": f"the seeds of a sweep are stated as {SEED}=0,1,2",
    "name": "the folder of each combination is named after its values",
    "extends": "it is read from the recipe file only",
    "folder": "it names where functions are imported from: vary the function instead",
    "launch": "it changes no result: give it once, with --set or as an option",
    "report_to": "it changes no result: give it once, with --set",
}


@dataclass(frozen=True)
class Combination:
    """One combination of a grid: the folder of its run, and the values by key, as they were typed."""

    folder: str
    values: Mapping[str, str]
    error: str | None = None  # why its last attempt ended, where it failed

    @property
    def overrides(self) -> list[str]:
        """The values as `--set` takes them."""
        return [f"{key}={value}" for key, value in self.values.items()]


@dataclass(frozen=True)
class Grid:
    """The values of each key, as they were typed, and the seeds; an empty list where none are stated."""

    axes: Mapping[str, Sequence[str]]
    seeds: Sequence[str] = ()

    @property
    def overrides(self) -> list[str]:
        """The seeds as `--set` takes them: several make each combination a run over seeds."""
        if not self.seeds:
            return []
        return [f"{SEED}={self.seeds[0]}"] if len(self.seeds) == 1 else [f"seeds.values=[{', '.join(self.seeds)}]"]

    def combinations(self) -> list[Combination]:
        """List the combinations in order; the values of the last key change fastest."""
        names = _short_names(list(self.axes))
        found = []
        for values in itertools.product(*self.axes.values()):
            chosen = dict(zip(self.axes, values, strict=True))
            found.append(Combination(_folder({names[key]: value for key, value in chosen.items()}), chosen))
        return found


@dataclass(frozen=True)
class Sweep:
    """The record of a sweep: what was asked for, and how its combinations stand."""

    name: str
    recipe: str  # the recipe's file
    settings: Sequence[str]  # --set values that all combinations share
    grid: Grid
    kl_limit: float | None
    combinations: Sequence[Combination]

    def with_error(self, folder: str, error: str | None) -> Sweep:
        """Return the record with the error of one combination; None: it has none."""
        changed = [replace(one, error=error) if one.folder == folder else one for one in self.combinations]
        return replace(self, combinations=changed)


# ---------------------------------------------------------------- the grid


def read_grid(words: Sequence[str]) -> Grid:
    """Parse `key=value,value,...` words; RecipeError with all faults.

    The values are the items of a YAML list without its brackets: a value with a comma needs quotes or brackets.
    """
    axes: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for word in words:
        match = _AXIS.fullmatch(word)
        if match is None:
            fix = "write it as ppo.kl_coef=0,0.05,0.2"
            problems.append(Problem("", "is not of the form key=value,value", word, fix))
            continue
        key, problem = match[1], _fault(match[1], axes)
        values, unreadable = list_items(match[2])
        if problem is None and unreadable is not None:
            problem = (unreadable, "separate values with commas; put a value that has one in quotes or brackets")
        if problem is None and (twice := [value for value in values if values.count(value) > 1]):
            problem = (f"the value {twice[0]} stands twice", "name each value once")
        if problem is not None:
            problems.append(Problem(key, problem[0], word, problem[1]))
            continue
        axes[key] = values
    seeds = axes.pop(SEED, [])
    if not problems and all(len(values) == 1 for values in axes.values()):
        what = "the grid has one combination: there is nothing to compare"
        seeded = f" --seeds {','.join(seeds)}" if len(seeds) > 1 else ""
        fix = f"give a key two values or more, or use rlhfctl run RECIPE{seeded} --set KEY=VALUE"
        problems.append(Problem("", what, fix=fix))
    if problems:
        raise RecipeError(problems)
    return Grid(axes, seeds)


def _fault(key: str, axes: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return why a key cannot be varied, with the way out."""
    if key in axes:
        return "stands twice in the grid", "name each key once, with all its values"
    if key.partition(".")[0] in _NO_AXES:
        return "cannot be varied in a sweep", _NO_AXES[key.partition(".")[0]]
    return None


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Name each key by its last part; by all of it where two keys end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _folder(values: Mapping[str, str]) -> str:
    """Name a combination's folder by its values: `kl_coef=0.05,r=8`. Where they do not fit, a hash makes it unique."""
    text = ",".join(f"{key}={value}" for key, value in values.items())
    safe = _UNSAFE.sub("-", text)
    if safe == text and len(text) <= _LONGEST_FOLDER:
        return text
    return f"{safe[:_LONGEST_FOLDER]}-{fs.hash_bytes(text.encode('utf-8'))[:_DIGITS]}"


# ---------------------------------------------------------------- the record


def is_sweep(folder: Path) -> bool:
    """Tell whether a folder is that of a sweep."""
    return (folder / SWEEP).is_file()


def runs_in(folder: Path) -> list[Path]:
    """List the runs of a sweep that have begun, in the order of its grid; the folder itself if it is no sweep."""
    if not is_sweep(folder):
        return [folder]
    paths = [folder / one.folder for one in read_sweep(folder).combinations]
    return [path for path in paths if (path / RECIPE).is_file()]


def require_one_run(folder: Path) -> None:
    """Raise RlhfctlError if `folder` is a sweep: the command is about one run."""
    if is_sweep(folder):
        named = ", ".join(map(str, runs_in(folder))) or "none has begun"
        raise RlhfctlError("is a sweep, which holds several runs", where=str(folder), fix=f"name one of them: {named}")


def require_run(folder: Path) -> None:
    """Raise RlhfctlError if `folder` is no run's: it has no recipe, or it is a sweep."""
    require_one_run(folder)
    if not (folder / RECIPE).is_file():
        near = sorted(path.parent.name for path in folder.parent.glob(f"*/{RECIPE}")) if folder.parent.is_dir() else []
        raise RlhfctlError(
            f"there is no run here: {RECIPE} is missing",
            where=str(folder),
            fix=f"runs beside it: {', '.join(near)}" if near else "start one: rlhfctl run quickstart",
        )


def read_sweep(folder: Path) -> Sweep:
    """Read the record of a sweep; RlhfctlError if it cannot be read."""
    file = folder / SWEEP
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Sweep(
            found["name"],
            found["recipe"],
            found["settings"],
            Grid(found["grid"], found["seeds"]),
            found["kl_limit"],
            [Combination(one["folder"], one["values"], one["error"]) for one in found["combinations"]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "the same rlhfctl sweep command writes it anew"
        raise RlhfctlError(f"cannot be read: {error}", where=str(file), fix=fix) from error


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the record of a sweep in one step."""
    record = {
        "format": FORMAT,
        "name": sweep.name,
        "recipe": sweep.recipe,
        "settings": list(sweep.settings),
        "grid": {key: list(values) for key, values in sweep.grid.axes.items()},
        "seeds": list(sweep.grid.seeds),
        "kl_limit": sweep.kl_limit,
        "combinations": [asdict(one) for one in sweep.combinations],
    }
    folder.mkdir(parents=True, exist_ok=True)
    fs.write_atomic(folder / SWEEP, json.dumps(record, indent=2, ensure_ascii=False) + "\n")  # the grid keeps its order
