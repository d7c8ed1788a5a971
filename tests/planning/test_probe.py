"""A probe runs one step of each stage."""

from __future__ import annotations

from pathlib import Path

from rlhfctl.planning import probe
from rlhfctl.recipe.load import load_recipe


def test_a_probe_takes_one_step_of_the_same_size(tiny_recipe: Path) -> None:
    given = load_recipe(tiny_recipe).recipe
    once = probe.one_step(given)
    assert once["sft"]["trainer"] == given.sft.trainer | {"max_steps": 1}  # type: ignore[union-attr]
    assert once["ppo"]["total_episodes"] == 16 == given.ppo.batch_size  # type: ignore[union-attr]
    assert once["data"]["demonstrations"] == given.model_dump(mode="json")["data"]["demonstrations"]
