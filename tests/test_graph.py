"""The table of stages: which of them the sections of a recipe ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages_of_a_run import RECIPE, recipe_at

from rlhfctl.graph import section_of, stages_of
from rlhfctl.recipe.schema import Card


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ((), ["sft", "reward", "ppo", "compare"]),
        (("sft:",), ["base", "reward", "ppo", "compare"]),
        (("compare:",), ["sft", "reward", "ppo"]),
        (("compare:", "ppo:"), ["sft", "reward"]),
        (("sft:", "ppo:", "reward:"), ["base", "compare"]),
    ],
)
def test_the_stages_are_the_sections_in_order(tmp_path: Path, without: tuple[str, ...], expected: list[str]) -> None:
    lines = [line for line in RECIPE.splitlines(keepends=True) if not line.startswith(without)]
    assert stages_of(recipe_at(tmp_path, text="".join(lines)).recipe) == expected


@pytest.mark.parametrize(
    "reward", ["{card: {}}", "{gate: {}}", '{function: "scores:length", card: {}}', "{model: org/scorer, gate: {}}"]
)
def test_the_card_is_a_stage_between_reward_and_ppo_where_it_is_asked_for(tmp_path: Path, reward: str) -> None:
    recipe = recipe_at(tmp_path, text=RECIPE.replace("reward: {}", f"reward: {reward}")).recipe
    assert [name for name in stages_of(recipe) if name != "reward"] == ["sft", "card", "ppo", "compare"]
    assert section_of("card", recipe) == Card()
    assert section_of("card", recipe_at(tmp_path).recipe) is None


@pytest.mark.parametrize("scorer", ['{function: "scores:length"}', "{model: org/scorer}"])
def test_a_ready_reward_is_no_stage(tmp_path: Path, scorer: str) -> None:
    recipe = recipe_at(tmp_path, text=RECIPE.replace("reward: {}", f"reward: {scorer}")).recipe
    assert stages_of(recipe) == ["sft", "ppo", "compare"]
