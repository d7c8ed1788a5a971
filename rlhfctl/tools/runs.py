"""`rlhfctl runs`: list the runs in a folder, newest first, each with its state, stages, result and size.

Reads recipes, manifests, verdicts and file sizes; loads no model and no torch, and changes nothing. A run that cannot
be read (an older format, a file cut short) becomes a row that says so. Leaves out details of one run (show.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhfctl import fs
from rlhfctl.artifacts import Artifact, manifests_in
from rlhfctl.dashboard.text import counted, number, visible
from rlhfctl.errors import RlhfctlError
from rlhfctl.graph import ELSEWHERE
from rlhfctl.metrics import ranked
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import outline
from rlhfctl.run_stages import read_stages, stages_in
from rlhfctl.sweeping import SWEEP, is_sweep, read_sweep

_STYLES = {
    "running": "bold cyan",
    "complete": "green",
    "waiting": "magenta",
    "unfinished": "yellow",
    "unreadable": "red",
}
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Run:
    """Summary of one run folder: one row of the table."""

    name: str
    state: str  # running, complete, waiting (for people), unfinished or unreadable
    stages: dict[str, str]  # stage -> complete, waiting, under way, not started, or from elsewhere
    result: str
    active: float  # time of the last activity, Unix seconds
    size: int  # bytes


def find(folder: Path) -> list[Run]:
    """Find the runs in a folder, sorted by last activity, newest first. RlhfctlError if it is not a folder of runs."""
    if not folder.is_dir():
        raise RlhfctlError("there is no such folder", where=str(folder), fix="start a run: rlhfctl run quickstart")
    if (folder / "recipe.yaml").is_file():
        raise RlhfctlError("is one run, not a folder of runs", where=str(folder), fix=f"rlhfctl show {folder}")
    runs = [_read(RunPaths(path)) for path in folder.iterdir() if (path / "recipe.yaml").is_file()]
    runs += [_read_sweep(path) for path in folder.iterdir() if is_sweep(path)]
    return sorted(runs, key=lambda run: (-run.active, run.name))


def to_json(run: Run) -> dict[str, Any]:
    """Convert a run into the JSON that `runs --json` prints: `active` in Unix seconds, `size` in bytes."""
    return asdict(run)


def table(runs: list[Run]) -> Table:
    """Build a table with one row per run."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("run", overflow="fold")
    shown.add_column("state", no_wrap=True)
    shown.add_column("stages")
    shown.add_column("last activity", no_wrap=True)
    shown.add_column("result", overflow="fold")
    shown.add_column("size", justify="right", no_wrap=True)
    for run in runs:
        active = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.active))
        state = Text(run.state, _STYLES[run.state])
        shown.add_row(Text(visible(run.name)), state, progress(run.stages), active, run.result, _size(run.size))
    return shown


def _read(paths: RunPaths) -> Run:
    artifacts: dict[StageId, Artifact] = {}
    stages: dict[str, str] = {}
    result, readable = "", True
    try:
        states, artifacts = read_stages(paths, stages_in(outline(paths.recipe), paths))
        stages = {str(stage): state for stage, state in states.items()}
        result = _result(artifacts)
    except (RlhfctlError, OSError, KeyError, TypeError, ValueError):  # `rlhfctl show` prints the full error
        result, readable = f"cannot be read; why: rlhfctl show {visible(str(paths.root))}", False
    complete = bool(artifacts) and all(state in ("complete", ELSEWHERE) for state in stages.values())
    state = "complete" if complete else "waiting" if "waiting" in stages.values() else "unfinished"
    if not readable:
        state = "unreadable"
    if fs.is_locked(paths.lock):
        state = "running"
    return Run(paths.root.name, state, stages, result, _active(paths), _bytes(paths.root))


def _read_sweep(folder: Path) -> Run:
    """Summarize a sweep in one row: the states of its combinations in place of stages."""
    paths, states, result = RunPaths(folder), dict[str, str](), ""
    try:
        for one in read_sweep(folder).combinations:
            begun = (folder / one.folder / "recipe.yaml").is_file()
            state = _read(RunPaths(folder / one.folder)).state if begun else "not started"
            states[one.folder] = state if one.error is None else "failed"
        failed = sum(state == "failed" for state in states.values())
        result = f"sweep of {counted(len(states), 'combination')}" + (f", {failed} failed" if failed else "")
        state = "complete" if all(state == "complete" for state in states.values()) else "unfinished"
    except RlhfctlError:
        result, state = f"cannot be read; why: rlhfctl show {visible(str(folder))}", "unreadable"
    if fs.is_locked(paths.lock):
        state = "running"
    return Run(folder.name, state, states, result, (folder / SWEEP).stat().st_mtime, _bytes(folder))


def _result(artifacts: dict[StageId, Artifact]) -> str:
    """Describe the result: the verdict if there is one, else the first-ranked metric of the last complete stage."""
    if not artifacts:
        return ""
    last = list(artifacts)[-1]
    artifact = artifacts[last]
    part = next((name for name in ("summary", "compare") if artifact.has(name)), None)
    if part is not None:
        report = json.loads(artifact.part(part).read_text(encoding="utf-8"))
        over = f" over {len(report['seeds'])} seeds" if "seeds" in report else ""
        judge = report["primary_judge"]
        rate = report["judges"][judge]["win_rate"]
        greedy = (report.get("greedy") or {}).get(judge)
        more = f", greedily on {greedy['win_rate']:.0%}" if greedy else ""
        return f"{report['verdict']}{over}: {visible(judge)} prefers it on {rate:.0%}{more}"
    metrics = artifact.manifest.metrics
    first = next((metric.name for metric in ranked(str(last), "show")), "")
    return f"{last}: {first} {number(metrics[first])}" if first in metrics else ""


def progress(stages: dict[str, str]) -> str:
    """Group the stages by state: `sft, reward complete; ppo under way; compare not started`.

    Stages of seeds that are equally far are named once: `seeds 0, 1: reward, ppo complete; seed 2: reward under way`.
    """
    groups: dict[str, dict[str, str]] = {}  # seed, or none for stages that all seeds share -> name -> state
    for text, state in stages.items():
        group, _, name = text.rpartition("/")
        round_, _, seed = group.rpartition("/")
        if group.startswith("round-") and not round_:
            round_, seed = group, ""
        name = f"{name} {round_.removeprefix('round-')}" if round_ else name
        groups.setdefault(seed.removeprefix("seed-"), {})[name] = state
    alike: dict[str, list[str]] = {}
    for group, states in groups.items():
        alike.setdefault(_by_state(states), []).append(group)
    parts = []
    for said, members in alike.items():
        seeds = [member for member in members if member.isdigit()]
        parts += [f"{f'{other}: ' if other else ''}{said}" for other in members if other not in seeds]
        parts += [f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}: {said}"] if seeds else []
    return "; ".join(parts)


def _by_state(states: dict[str, str]) -> str:
    """Write the states; a stage of several rounds is named once: `ppo 1 to 3 complete`."""
    groups = {state: [name for name in states if states[name] == state] for state in dict.fromkeys(states.values())}
    return "; ".join(f"{', '.join(_by_round(names, states))} {state}" for state, names in groups.items())


def _by_round(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Join names such as `ppo` (of round 1), `ppo 2`, `ppo 3` to `ppo 1 to 3`, where a run has several rounds."""
    rounds: dict[str, list[int]] = {}
    for text in names:
        name, _, number = text.partition(" ")
        rounds.setdefault(name, []).append(int(number or 1))
    several = {text.partition(" ")[0] for text in known if " " in text}
    said = []
    for name, numbers in rounds.items():
        whole = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
        told = f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))
        said.append(f"{name} {told}" if name in several else name)
    return said


def _active(paths: RunPaths) -> float:
    """Return the time of the last event, else the last change of the recipe or a manifest (Unix seconds)."""
    files = [paths.events] if paths.events.is_file() else [paths.recipe, *manifests_in(paths.root)]
    return max(file.stat().st_mtime for file in files)


def _bytes(folder: Path) -> int:
    """Sum the sizes of all files below a folder, in bytes. A file with several hard links counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(root) / name).lstat()
            except FileNotFoundError:  # a running stage has removed it meanwhile
                continue
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _size(count: int) -> str:
    """Write a number of bytes with at most three digits: 1.3 GB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{number(value, 3)} {_UNITS[unit]}" if value < 100 else f"{value:.0f} {_UNITS[unit]}"
