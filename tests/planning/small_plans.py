"""Plans of a recipe with changed settings, and the text that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from rlhfctl.graph import Request
from rlhfctl.planning.plan import Plan, plan
from rlhfctl.planning.view import view
from rlhfctl.recipe.load import load_recipe


def planned(recipe: Path, run: Path, *settings: str, request: Request | None = None, **more: Any) -> Plan:
    return plan(lambda others: load_recipe(recipe, [*settings, *others]), run, request, **more)


def shown(found: Plan, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(view(found))
    return console.export_text()
