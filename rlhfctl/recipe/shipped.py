"""Find the recipes that come with rlhfctl, by name.

Standard library only: shell completion asks for these names while the user types.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
ROOTS = (_PACKAGE / "recipes_data", _PACKAGE.parent / "recipes")  # in the wheel; in a checkout
COURSE = "course"  # the folder of the course's exercises: recipes with faults, which nobody should start from


def shipped_recipes(roots: Iterable[Path] = ROOTS) -> dict[str, Path]:
    """Map each name to its file: "quickstart", or "text/summaries" for a recipe in a folder. The course is left out."""
    files = {file: file.relative_to(root) for root in roots for file in root.rglob("*.yaml")}
    return {name.with_suffix("").as_posix(): file for file, name in files.items() if name.parts[0] != COURSE}


def course_recipes(roots: Iterable[Path] = ROOTS) -> dict[str, Path]:
    """Map the number of each exercise to its file."""
    return {file.stem: file for root in roots for file in (root / COURSE).glob("*.yaml")}
