"""Helpers of tests of the card stage: its context on the tiny run, whose stages are complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import resolve_source
from rlhfctl.data.load import check_all
from rlhfctl.events import Event
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stages import card
from rlhfctl.stages.context import Context


def card_context(
    tiny_run: Path, run: Path, *changes: str, parents: Mapping[str, Path] | None = None, without: tuple[str, ...] = ()
) -> tuple[Context, list[Event]]:
    """A context of the stage in the run folder `run`, on base* and reward model of the tiny run, and its events.

    `parents` replace these; `without` names data sets that are not there.
    """
    given = ["reward.card={prompts: 3, samples: 4}", "compare=null", *changes]
    recipe = load_recipe(tiny_run / "recipe.yaml", given).recipe
    data = check_all(recipe.data, recipe.data_seed, {"preferences", "prompts"} - set(without))
    folders = {"base": tiny_run / "sft", "reward": tiny_run / "reward"} | dict(parents or {})
    sources = {role: resolve_source(str(folder), role) for role, folder in folders.items() if folder != Path()}
    events: list[Event] = []
    return Context("card", recipe, RunPaths(run), sources, {"seed": "0"}, data, events.append), events


def made_card(ctx: Context) -> dict[str, Any]:
    """Run the stage and read its card."""
    assert ctx.recipe.reward is not None and ctx.recipe.reward.card is not None
    ctx.work.mkdir(parents=True, exist_ok=True)
    artifact = card.run(ctx.recipe.reward.card, ctx)
    found: dict[str, Any] = json.loads(artifact.part("card").read_text(encoding="utf-8"))
    return found


def pool_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "card" / "pool.jsonl").read_text(encoding="utf-8").splitlines()]
