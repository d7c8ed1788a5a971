"""Complete the RECIPE and RUN arguments in a shell: names of shipped recipes, recipe files, run folders.

Lists folders and reads no file. Imports the standard library and shipped.py alone, because it runs at each press of the
Tab key. A folder that cannot be listed gives no completions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlhfctl.recipe.shipped import shipped_recipes


def recipes(incomplete: str) -> list[str]:
    """Complete a recipe: names of shipped recipes, and recipe files and folders in the folder typed so far."""
    return _matching(incomplete, [*shipped(incomplete), *_files(incomplete)])


def shipped(incomplete: str) -> list[str]:
    """Complete the name of a shipped recipe."""
    return _matching(incomplete, shipped_recipes())


def runs(incomplete: str) -> list[str]:
    """Complete a run: the runs under runs/, and run folders and other folders in the folder typed so far."""
    known = [f"runs/{folder.name}" for folder in _entries(Path("runs")) if _is_run(folder)]
    parent = _typed_folder(incomplete)
    found = [parent + folder.name + ("" if _is_run(folder) else "/") for folder in _folders(incomplete)]
    return _matching(incomplete, [*known, *found])


def recipes_or_runs(incomplete: str) -> list[str]:
    """Complete a recipe or a run, for `compare`. A run folder is listed only as a run."""
    found = runs(incomplete)
    return _matching(incomplete, [*(name for name in recipes(incomplete) if name[:-1] not in found), *found])


def _files(incomplete: str) -> list[str]:
    parent = _typed_folder(incomplete)
    files = [parent + path.name for path in _candidates(incomplete) if path.suffix in (".yaml", ".yml")]
    return [*files, *(f"{parent}{folder.name}/" for folder in _folders(incomplete))]


def _folders(incomplete: str) -> list[Path]:
    return [path for path in _candidates(incomplete) if path.is_dir()]


def _candidates(incomplete: str) -> list[Path]:
    """List the folder typed so far. Hidden entries are listed only after a typed dot."""
    hidden = incomplete.rpartition("/")[2].startswith(".")
    entries = _entries(Path(_typed_folder(incomplete) or ".").expanduser())
    return [path for path in entries if hidden or not path.name.startswith(".")]


def _typed_folder(incomplete: str) -> str:
    return incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""


def _is_run(folder: Path) -> bool:
    made = any((folder / name).is_file() for name in ("recipe.yaml", "sweep.json"))
    return made and (folder / "events.jsonl").is_file()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _matching(incomplete: str, candidates: Iterable[str]) -> list[str]:
    """Select the candidates that begin with the text typed so far, each once."""
    return [name for name in dict.fromkeys(candidates) if name.startswith(incomplete)]
