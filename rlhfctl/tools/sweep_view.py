"""`rlhfctl show` of a sweep: how its combinations stand, and why some failed.

Reads the sweep's record and its runs' recipes and manifests; loads no torch, and writes nothing. The measures are in
the report (report/sweep.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhfctl.dashboard.text import counted, visible
from rlhfctl.paths import RECIPE
from rlhfctl.sweeping import read_sweep
from rlhfctl.tools import runs


def describe(folder: Path) -> list[Table | Text]:
    """Describe a sweep: what was asked for, a row per combination, and the errors of those that failed."""
    sweep = read_sweep(folder)
    over = f", over seeds {', '.join(sweep.grid.seeds)}" if len(sweep.grid.seeds) > 1 else ""
    begun = [one.folder for one in sweep.combinations if (folder / one.folder / RECIPE).is_file()]
    waiting = [one.folder for one in sweep.combinations if one.folder not in begun]
    heading = f"{sweep.name} in {folder}: {counted(len(sweep.combinations), 'combination')}{over}"
    parts: list[Table | Text] = [Text(heading, style="bold")]
    by_name = {found.name: found for found in runs.find(folder)}
    parts.append(runs.table([by_name[name] for name in begun if name in by_name]))
    if waiting:
        parts.append(Text(f"not begun: {', '.join(waiting)}"))
    for one in sweep.combinations:
        if one.error is not None:
            parts.append(Text(visible(f"{one.folder} failed: {one.error}"), style="red"))
    return parts


def to_json(folder: Path) -> dict[str, Any]:
    """Build the JSON that `show --json` prints of a sweep: its values, errors and runs."""
    sweep, found = read_sweep(folder), {one.name: one for one in runs.find(folder)}
    rows = [
        {
            "folder": one.folder,
            "values": dict(one.values),
            "error": one.error,
            "run": runs.to_json(found[one.folder]) if one.folder in found else None,
        }
        for one in sweep.combinations
    ]
    return {"name": sweep.name, "sweep": str(folder), "kl_limit": sweep.kl_limit, "combinations": rows}
