"""Names of scorers: where each may stand, the kind of each, and that each can be built."""

from __future__ import annotations

import pytest

from rlhfctl.recipe.sections import scorers
from rlhfctl.rewards.build import BUILDERS


@pytest.mark.parametrize("name", scorers.SCORERS)
def test_a_name_is_its_own_kind_and_can_be_built_unless_it_judges_pairs(name: str) -> None:
    assert scorers.kind_of(name) == name and (name in BUILDERS) is (scorers.SCORERS[name].scores == "responses")


def test_the_endpoint_judges_pairs_and_is_no_reward() -> None:
    assert [name for name, scorer in scorers.SCORERS.items() if scorer.scores == "pairs"] == [scorers.ENDPOINT]
    assert scorers.unknown_in("ppo.rewards", ["endpoint"]) == ["endpoint"]
    assert scorers.unknown_in("compare.judges", ["endpoint"]) == []


def test_functions_have_one_kind() -> None:
    assert scorers.kind_of("my.module:score") == scorers.FUNCTION and scorers.FUNCTION in BUILDERS


@pytest.mark.parametrize(
    ("name", "kind", "model"),
    [
        ("http://127.0.0.1:8000/score", scorers.SERVER, None),
        ("https://host/a:b", scorers.SERVER, None),
        ("org/model", scorers.MODEL, "org/model"),
        ("./model@GOOD", scorers.MODEL, "./model"),
        ("a.b:c", scorers.FUNCTION, None),
        ("bertscore@org/model@17", "bertscore", "org/model"),
        ("bertscore@./model", "bertscore", "./model"),
    ],
)
def test_a_name_tells_whether_it_is_a_server_a_model_or_a_function(name: str, kind: str, model: str | None) -> None:
    assert scorers.kind_of(name) == kind and kind in BUILDERS and scorers.model_in(name) == model
    assert scorers.unknown_in("ppo.rewards", [name]) == scorers.unknown_in("compare.judges", [name]) == []


def test_a_classifier_is_a_model_with_a_label() -> None:
    assert scorers.path_and_label("org/model@VERY GOOD") == ("org/model", "VERY GOOD")
    assert scorers.path_and_label("org/model") == ("org/model", None)


def test_a_name_is_known_only_where_it_may_stand() -> None:
    assert scorers.unknown_in("ppo.rewards", ["reward", "my.module:score"]) == []
    assert scorers.unknown_in("ppo.rewards", ["gold", "reward"]) == ["gold"]
    assert scorers.unknown_in("compare.judges", ["gold", "reward", "golden"]) == ["reward", "golden"]
