"""Find the recipes that come with rlhfctl, by name.

Standard library only: shell completion asks for these names while the user types.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
ROOTS = (_PACKAGE / "recipes_data", _PACKAGE.parent / "recipes")  # in the wheel; in a checkout


def shipped_recipes(roots: Iterable[Path] = ROOTS) -> dict[str, Path]:
    """Map each name to its file: "quickstart", or "text/summaries" for a recipe in a folder."""
    return {file.relative_to(root).with_suffix("").as_posix(): file for root in roots for file in root.rglob("*.yaml")}
