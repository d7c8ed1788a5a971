"""Names of scorers: where each may stand, the kind of each, and that each can be built."""

from __future__ import annotations

import pytest

from rlhfctl.recipe.sections import scorers
from rlhfctl.rewards.build import BUILDERS


@pytest.mark.parametrize("name", scorers.SCORERS)
def test_a_name_is_its_own_kind_and_can_be_built_unless_it_judges_pairs(name: str) -> None:
    assert scorers.kind_of(name) == name and (name in BUILDERS) is not scorers.SCORERS[name].of_pairs


def test_the_endpoint_judges_pairs_and_is_no_reward() -> None:
    assert [name for name, scorer in scorers.SCORERS.items() if scorer.of_pairs] == [scorers.ENDPOINT]
    assert scorers.unknown_in("ppo.rewards", ["endpoint"]) == ["endpoint"]
    assert scorers.unknown_in("compare.judges", ["endpoint"]) == []


def test_functions_have_one_kind() -> None:
    assert scorers.kind_of("my.module:score") == scorers.FUNCTION and scorers.FUNCTION in BUILDERS


def test_a_name_is_known_only_where_it_may_stand() -> None:
    assert scorers.unknown_in("ppo.rewards", ["reward", "my.module:score"]) == []
    assert scorers.unknown_in("ppo.rewards", ["gold", "reward"]) == ["gold"]
    assert scorers.unknown_in("compare.judges", ["gold", "reward", "golden"]) == ["reward", "golden"]
