"""What the keys of a recipe ask of a stage: the models, data, settings and functions that it depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages_of_a_run import RECIPE, recipe_at

from rlhfctl import stage_needs as needs
from rlhfctl.graph import STAGES, stages_of


def test_a_held_out_reward_model_is_a_stage_that_ppo_reads_where_it_evaluates(tmp_path: Path) -> None:
    asked = recipe_at(tmp_path, "reward.heldout=true").recipe
    assert stages_of(asked) == ["sft", "reward", "heldout", "ppo", "compare"]
    parent = STAGES["ppo"].parents["heldout"]
    assert parent.used(asked)
    for never in ("ppo.eval.every=0", "data.prompts.eval=0"):
        assert not parent.used(recipe_at(tmp_path, "reward.heldout=true", never).recipe), never
    judge = STAGES["compare"].parents["heldout"]
    assert not judge.used(asked)
    assert judge.used(recipe_at(tmp_path, "reward.heldout=true", "compare.judges=[heldout,gold]",
        "compare.primary_judge=gold").recipe)  # fmt: skip


@pytest.mark.parametrize(
    ("reward", "sets", "expected"),
    [
        ("{}", (), {}),
        ("{members: 3, lora: {r: 4}}", ("reward.aggregate=min",), {"reward.aggregate": ["min", 1.0]}),
        ("{model: org/scorer, label: 1}", (), {"reward.label": [1, None]}),
        ("{model: org/scorer}", (), {}),
        ('{function: "scores:length"}', (), {}),
    ],
)
def test_how_a_reward_is_read_is_an_input_where_the_recipe_says_it(
    tmp_path: Path, reward: str, sets: tuple[str, ...], expected: dict[str, object]
) -> None:
    recipe = recipe_at(tmp_path, *sets, text=RECIPE.replace("reward: {}", f"reward: {reward}")).recipe
    assert needs.reading(recipe) == expected


def test_functions_are_those_of_the_reward_section_and_those_of_the_stage(tmp_path: Path) -> None:
    text = RECIPE.replace("reward: {}", 'reward: {function: "scores:length"}')
    recipe = recipe_at(tmp_path, text=text).recipe
    asked = ["scores:other", "http://127.0.0.1:8000/score", "gold", "reward"]
    assert needs.functions(asked, recipe) == ["scores:length", *asked[:2]]
    assert needs.functions(asked, recipe_at(tmp_path).recipe) == asked[:2]
