"""What a shell offers for RECIPE and RUN while somebody types: shipped names, recipe files, run folders.

Lists folders; reads no file. Light, since it runs at every press of the key: the standard library and shipped.py.
Where nothing can be listed it offers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlhfctl.recipe.shipped import shipped_recipes


def recipes(incomplete: str) -> list[str]:
    """Shipped names; recipe files beside what is typed, and the folders on the way to others."""
    return _offered(incomplete, [*shipped(incomplete), *_files(incomplete)])


def shipped(incomplete: str) -> list[str]:
    """Shipped names alone."""
    return _offered(incomplete, shipped_recipes())


def runs(incomplete: str) -> list[str]:
    """Runs under runs/; run folders beside what is typed, and the folders on the way to others."""
    known = [f"runs/{folder.name}" for folder in _entries(Path("runs")) if _is_run(folder)]
    shown = _typed_folder(incomplete)
    found = [shown + folder.name + ("" if _is_run(folder) else "/") for folder in _folders(incomplete)]
    return _offered(incomplete, [*known, *found])


def recipes_or_runs(incomplete: str) -> list[str]:
    """Both, for `compare`; a run is not also offered as a folder to look into."""
    found = runs(incomplete)
    return _offered(incomplete, [*(name for name in recipes(incomplete) if name[:-1] not in found), *found])


def _files(incomplete: str) -> list[str]:
    shown = _typed_folder(incomplete)
    files = [shown + path.name for path in _beside(incomplete) if path.suffix in (".yaml", ".yml")]
    return [*files, *(f"{shown}{folder.name}/" for folder in _folders(incomplete))]


def _folders(incomplete: str) -> list[Path]:
    return [path for path in _beside(incomplete) if path.is_dir()]


def _beside(incomplete: str) -> list[Path]:
    """What lies in the folder that is typed so far; hidden entries only for who has typed a dot."""
    hidden = incomplete.rpartition("/")[2].startswith(".")
    entries = _entries(Path(_typed_folder(incomplete) or ".").expanduser())
    return [path for path in entries if hidden or not path.name.startswith(".")]


def _typed_folder(incomplete: str) -> str:
    return incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file() and (folder / "events.jsonl").is_file()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _offered(incomplete: str, candidates: Iterable[str]) -> list[str]:
    """Those that go on from what is typed, each once."""
    return [name for name in dict.fromkeys(candidates) if name.startswith(incomplete)]
