"""`runs`: the run folders of a folder, newest first, with how far each is and what came of it.

Reads recipes, manifests, verdicts and file sizes; loads no model and no torch, and changes nothing. A run that cannot
be read (an older format, a file cut short) is a row that says so. Leaves out the single run: `show`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhfctl import fs
from rlhfctl.artifacts import MANIFEST, Artifact
from rlhfctl.dashboard.text import number, visible
from rlhfctl.errors import RlhfctlError
from rlhfctl.metrics import ranked
from rlhfctl.paths import RunPaths
from rlhfctl.pipeline import ELSEWHERE, STAGES, read_stages, stages_of
from rlhfctl.recipe.load import outline

_STYLES = {"running": "bold cyan", "complete": "green", "unfinished": "yellow", "unreadable": "red"}
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Run:
    """One run folder, as far as it can be told without loading a model."""

    name: str
    state: str  # running, complete, unfinished or unreadable
    stages: dict[str, str]  # name -> complete, under way, not started, or from elsewhere
    result: str
    active: float  # Unix seconds
    size: int  # bytes


def find(folder: Path) -> list[Run]:
    """The runs in a folder, the one that was active last first."""
    if not folder.is_dir():
        raise RlhfctlError("there is no such folder", where=str(folder), fix="start a run: rlhfctl run quickstart")
    if (folder / "recipe.yaml").is_file():
        raise RlhfctlError("is one run, not a folder of runs", where=str(folder), fix=f"rlhfctl show {folder}")
    runs = [_read(RunPaths(path)) for path in folder.iterdir() if (path / "recipe.yaml").is_file()]
    return sorted(runs, key=lambda run: (-run.active, run.name))


def to_json(run: Run) -> dict[str, Any]:
    """Give a run as `runs --json` prints it: `active` in Unix seconds, `size` in bytes."""
    return asdict(run)


def table(runs: list[Run]) -> Table:
    """A row for each run."""
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
        shown.add_row(Text(visible(run.name)), state, _progress(run.stages), active, run.result, _size(run.size))
    return shown


def _read(paths: RunPaths) -> Run:
    artifacts: dict[str, Artifact] = {}
    stages: dict[str, str] = {}
    result, readable = "", True
    try:
        stages, artifacts = read_stages(paths, stages_of(outline(paths.recipe)))
        result = _result(artifacts)
    except (RlhfctlError, OSError, KeyError, TypeError, ValueError):  # told in full by `show`
        result, readable = f"cannot be read; why: rlhfctl show {visible(str(paths.root))}", False
    complete = bool(artifacts) and all(state in ("complete", ELSEWHERE) for state in stages.values())
    state = "complete" if complete else "unfinished"
    if not readable:
        state = "unreadable"
    if fs.is_locked(paths.lock):
        state = "running"
    return Run(paths.root.name, state, stages, result, _active(paths), _bytes(paths.root))


def _result(artifacts: dict[str, Artifact]) -> str:
    """The verdict where there is one, else the metric that tells most of the last complete stage."""
    if not artifacts:
        return ""
    last = max(artifacts, key=STAGES.index)
    artifact = artifacts[last]
    if artifact.has("compare"):
        report = json.loads(artifact.part("compare").read_text(encoding="utf-8"))
        judge = report["primary_judge"]
        rate = report["judges"][judge]["win_rate"]
        greedy = (report.get("greedy") or {}).get(judge)
        more = f", greedily on {greedy['win_rate']:.0%}" if greedy else ""
        return f"{report['verdict']}: {visible(judge)} prefers it on {rate:.0%}{more}"
    metrics = artifact.manifest.metrics
    first = next((metric.name for metric in ranked(last, "show")), "")
    return f"{last}: {first} {number(metrics[first])}" if first in metrics else ""


def _progress(stages: dict[str, str]) -> str:
    """`sft, reward complete; ppo under way; compare not started`."""
    groups = {state: [name for name in stages if stages[name] == state] for state in dict.fromkeys(stages.values())}
    return "; ".join(f"{', '.join(names)} {state}" for state, names in groups.items())


def _active(paths: RunPaths) -> float:
    """When the run last said something, else when its recipe or a manifest was last written."""
    files = [paths.events] if paths.events.is_file() else [paths.recipe, *paths.root.glob(f"*/{MANIFEST}")]
    return max(file.stat().st_mtime for file in files)


def _bytes(folder: Path) -> int:
    """Of all files below, those with several names counted once; a running stage may take some away meanwhile."""
    sizes: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(root) / name).lstat()
            except FileNotFoundError:
                continue
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _size(count: int) -> str:
    """1.3 GB; three figures at most."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{number(value, 3)} {_UNITS[unit]}" if value < 100 else f"{value:.0f} {_UNITS[unit]}"
