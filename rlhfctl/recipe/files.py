"""Resolve the paths in a recipe: make each absolute from the folder of its recipe file, and check that it exists.

Reads environment variables that paths name, and which files exist; opens none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from rlhfctl.recipe.layers import DATA_SETS, Layer, Origin, Problems
from rlhfctl.recipe.sections.base import Key
from rlhfctl.recipe.sections.data import STAGE_SOURCE, looks_like_id
from rlhfctl.recipe.words import did_you_mean, shortened

_NO_PATH = ("builtin:", STAGE_SOURCE)  # prefixes of sources that are no paths
_MODELS = (("model", "path"), ("reward", "model"), ("reward", "prompted_classifier", "model"))
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def resolve_paths(layer: Layer, problems: Problems) -> None:
    """Make paths absolute from the folder of the file that states them, and check that they exist."""
    sources = list(_source_keys(layer))
    for key in (("folder",), *sources, *_MODELS, ("model", "chat_template"), ("launch", "accelerate_config")):
        text = layer.get(key)
        if not isinstance(text, str) or not text or (key in sources and text.startswith(_NO_PATH)):
            continue
        if key[-1] == "chat_template" and not text.endswith((".jinja", ".j2")):
            continue  # the text of the template, not a path
        origin = layer.origin(key)
        expanded = expand(text, key, origin, problems)
        if expanded is None:
            continue
        path = absolute(expanded, origin.folder)
        is_folder = key[-1] in ("folder", "path", "model")
        try:
            there = path.is_dir() if is_folder else path.exists() if key in sources else path.is_file()
        except OSError:  # the name is invalid for a file
            there = False
        may_be_id = key in _MODELS or (key in sources and looks_like_id(expanded))
        if may_be_id and not there and not expanded.startswith((".", "/", "~")):
            path = Path(expanded)  # or an id on the Hub
        elif key != ("folder",) and not there:
            kind = "folder" if is_folder else "file"
            problems.add(origin, key, f"there is no {kind} {shown(path)}{near_file(path)}")
        layer.get(key[:-1])[key[-1]] = str(path)
    if layer.get(("folder",)) is None:
        layer.data["folder"] = str(layer.origin(("reward", "function")).folder)


def _source_keys(layer: Layer) -> Iterator[Key]:
    """List the keys that name sources of data: of a set, of each source in a list, of separate eval and test sets."""
    for at in DATA_SETS:
        yield (*at, "source")
        listed = layer.get((*at, "sources"))
        yield from (
            (*at, "sources", index, "source") for index in range(len(listed) if isinstance(listed, list) else 0)
        )
        for name in ("eval_source", "test_source"):
            key = (*at, name)
            yield (*key, "source") if isinstance(layer.get(key), dict) else key


def expand(text: str, key: Key, origin: Origin, problems: Problems) -> str | None:
    """Replace ${VAR} by environment variables; None, and a problem, if a variable is not set."""
    unset = [name for name in _VARIABLE.findall(text) if name not in os.environ]
    for name in unset:
        problems.add(origin, key, f"the environment variable {name} is not set", f"export {name}=...")
    return None if unset else _VARIABLE.sub(lambda match: os.environ[match[1]], text)


def absolute(text: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder / Path(text).expanduser()))


def shown(path: Path) -> str:
    return shortened(str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path))


def near_file(path: Path) -> str:
    try:
        return did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
    except OSError:
        return ""
