"""`rlhfctl recipes`: list, print and copy the shipped recipes.

Reads the recipes' files. `copy` writes one, and beside it the files that the recipe names (prompts, a function); it
overwrites nothing. Leaves out whether data and models exist (`validate` checks that).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.graph import stages_of
from rlhfctl.recipe.load import outline
from rlhfctl.recipe.schema import NAME, Model
from rlhfctl.recipe.shipped import shipped_recipes
from rlhfctl.recipe.words import did_you_mean

# Editors find the schema beside the shipped recipes by this line. A copy drops it: no schema lies there.
SCHEMA_LINE = re.compile(r"^# yaml-language-server:.*\n", re.MULTILINE)


def listing() -> Table:
    """Build a table with one row per shipped recipe."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("what for")
    for heading in ("stages", "model"):
        table.add_column(heading, max_width=24)
    for name, file in sorted(shipped_recipes().items()):
        recipe = outline(file)
        text = Text(purpose(file.read_text(encoding="utf-8")))
        table.add_row(name, text, ", ".join(stages_of(recipe)), Text(_model(recipe.model)))
    return table


def purpose(text: str) -> str:
    """Return the first line of the comment at the top of a recipe; "" if there is none."""
    for line in SCHEMA_LINE.sub("", text).splitlines():
        words = line.lstrip("#").strip()
        if words or not line.startswith("#"):
            return words if line.startswith("#") else ""
    return ""


def show(name: str) -> str:
    """Return the text of a shipped recipe, comments included."""
    return find(name).read_text(encoding="utf-8")


def find(name: str) -> Path:
    """Find the file of a shipped recipe. RlhfctlError names similar ones if there is none of this name."""
    shipped = shipped_recipes()
    file = shipped.get(name) or shipped.get(name.removesuffix(".yaml"))
    if file is None:
        raise RlhfctlError(
            f"there is no shipped recipe {name!r}{did_you_mean(name, shipped)}",
            fix=f"shipped recipes: {', '.join(sorted(shipped))}",
        )
    return file


def copy(name: str, to: Path | None) -> Iterator[str]:
    """Copy a shipped recipe to `to` (a file or a folder; default: the current folder), with the files that it names.

    Yields lines that say what was done. RlhfctlError where a file would be overwritten.
    """
    file = find(name)
    to = to or Path(file.name)
    to = to / file.name if to.is_dir() else to
    text = SCHEMA_LINE.sub("", file.read_text(encoding="utf-8"))
    another = f"name another: rlhfctl recipes copy {name} my-{file.name}"
    fs.require_new(to, fix=another)  # checked before the first file is written
    beside = []
    for other in companion_files(text, file):
        copied = to.parent / other.name
        if copied.is_file() and copied.read_bytes() == other.read_bytes():
            continue
        elsewhere = f"name a file in another folder: rlhfctl recipes copy {name} my-{file.stem}/{file.name}"
        fs.write_new(copied, other.read_bytes(), fix=elsewhere)
        beside.append(other.name)
    run = to.stem if re.match(NAME, to.stem) else file.stem
    if run != file.stem:  # a copy under another name gets a run folder of its own
        text = re.sub(rf"(?m)^name: {re.escape(file.stem)}$", lambda _: f"name: {json.dumps(run)}", text)
    fs.write_new(to, text, fix=another)
    yield f"copied {name} to {to}" + (f", and beside it {' and '.join(beside)}" if beside else "")
    yield f"its run goes to runs/{run} (its name); edit it, then: rlhfctl validate {shlex.quote(str(to))}"


def companion_files(text: str, file: Path) -> list[Path]:
    """Find the files beside a recipe that it names: by file name, or a Python file by the module in `module:name`."""
    found = []
    for other in sorted(path for path in file.parent.iterdir() if path.is_file() and path != file):
        names = [rf"{re.escape(other.name)}(?![\w-])"]
        names += [f"{re.escape(other.stem)}:"] if other.suffix == ".py" else []
        if re.search(rf"(?<![\w.-])({'|'.join(names)})", text):
            found.append(other)
    return found


def _model(model: Model) -> str:
    if model.init is None:
        return model.path or ""
    return f"new, {model.init.num_hidden_layers} layers of {model.init.hidden_size}"
