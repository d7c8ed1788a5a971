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
    assert "card" not in once["reward"]
    assert once["data"]["demonstrations"] == given.model_dump(mode="json")["data"]["demonstrations"]


def test_a_probe_fills_one_batch_of_the_card_and_passes_no_gate(tiny_recipe: Path) -> None:
    given = load_recipe(tiny_recipe, ["reward.gate={}", "reward.card.prompts=6"]).recipe
    once = probe.one_step(given)["reward"]
    assert once["card"] == {"prompts": 6, "samples": 11} and "gate" not in once  # 64 responses at once
    few = load_recipe(tiny_recipe, ["reward.card={prompts: 100, samples: 8}"]).recipe
    assert probe.one_step(few)["reward"]["card"] == {"prompts": 100, "samples": 2}
