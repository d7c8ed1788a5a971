"""Names of scorers: the kind of each, and the functions that a result depends on."""

from __future__ import annotations

import pytest

from rlhfctl.recipe import scorers
from rlhfctl.recipe.schema import Recipe
from rlhfctl.rewards.build import BUILDERS


def recipe(**reward: str) -> Recipe:
    prompts = {"source": "builtin:reviews", "rows": 600}
    return Recipe.model_validate(
        {"name": "x", "model": {"path": "a"}, "data": {"prompts": prompts}, "reward": reward, "ppo": {}}
    )


@pytest.mark.parametrize("name", [scorers.REWARD, scorers.REWARD_MODEL, scorers.REWARD_FUNCTION, scorers.GOLD])
def test_a_name_is_its_own_kind_and_can_be_built(name: str) -> None:
    assert scorers.kind_of(name) == name and name in BUILDERS


def test_functions_have_one_kind() -> None:
    assert scorers.kind_of("my.module:score") == scorers.FUNCTION and scorers.FUNCTION in BUILDERS


def test_a_result_depends_on_the_reward_function_and_those_among_the_scorers() -> None:
    names = ["gold", "b:two", "reward", "c:three"]
    assert scorers.functions_among(names, recipe(function="a:one")) == ["a:one", "b:two", "c:three"]
    assert scorers.functions_among(names, recipe(model="org/reward")) == ["b:two", "c:three"]
