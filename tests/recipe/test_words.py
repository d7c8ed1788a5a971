"""Messages about keys and values: in words, with the key that was probably meant."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlhfctl.recipe import words
from rlhfctl.recipe.schema import Ppo, Recipe
from rlhfctl.recipe.sections.base import Key

SMALL: dict[str, Any] = {"name": "x", "model": {"path": "a"}, "data": {}, "reward": {"function": "a:b"}}


@pytest.mark.parametrize(
    ("key", "text"),
    [((), ""), (("ppo",), "ppo"), (("compare", "judges", 1), "compare.judges[1]"), (("a", 0, "b"), "a[0].b")],
)
def test_a_key_as_text(key: Key, text: str) -> None:
    assert words.dotted(key) == text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (("ppo", "gamma"), "high", "expected a number, got the string 'high'"),
        (("ppo", "gamma"), 3, "must be at most 1, got 3"),
        (("ppo", "cliprange"), -1, "must be greater than 0, got -1"),
        (("ppo", "engine"), "tlr", "expected rlhfctl or trl, got the string 'tlr'; did you mean 'trl'?"),
        (("ppo", "critic"), 1, "expected adapter, head, reward or model or null, got the number 1"),
        (("name",), "a b", "must be letters, digits, '.', '_' and '-', the first a letter or a digit, got"),
        (("report_to",), "wandb", "expected a list, got the string 'wandb'"),
        (("lora",), True, "expected a mapping or null, got true"),
    ],
)
def test_a_wrong_value_in_words(key: Key, value: object, expected: str) -> None:
    given: dict[str, Any] = {**SMALL, "ppo": {}}
    section = given
    for name in key[:-1]:
        section = section[str(name)]
    section[str(key[-1])] = value
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(given)
    details = [error for error in caught.value.errors() if error["loc"][: len(key)] == key]
    assert words.wrong_value(key, details).startswith(expected)


@pytest.mark.parametrize(
    ("key", "what", "fix", "meant"),
    [
        (("ppo", "klcoef"), "unknown key; did you mean 'kl_coef'?", None, "kl_coef"),
        (
            (
                "sft",
                "trainer_",
            ),
            "unknown key; did you mean 'trainer'?",
            None,
            "trainer",
        ),
        (("sft", "optim"), "unknown key; trainer options go under sft.trainer", "write sft.trainer.optim", None),
        (("compare", "endpoint", "api_key"), "keys never stand in a recipe", "set the environment variable", None),
        (("kl_coef",), "unknown key; it belongs under ppo", None, None),
        (("ppo", "beta"), "unknown key; did you mean 'kl_coef'?", "write kl_coef: TRL's name beta means it", "kl_coef"),
        (("ppo", "epsilon"), "unknown key; did you mean 'cliprange'?", "write cliprange", "cliprange"),
        (("ppo", "num_iterations"), "unknown key; did you mean 'num_ppo_epochs'?", "write num_", "num_ppo_epochs"),
        (("ppo", "max_completion_length"), "unknown key; did you mean 'response_length'?", "write", "response_length"),
        (("lora", "zzz"), "unknown key", "the keys of lora: r, ", None),
    ],
)
def test_an_unknown_key_names_the_way(key: Key, what: str, fix: str | None, meant: str | None) -> None:
    said, way, name = words.unknown_key(key)
    assert (said, name) == (what, meant)
    assert way is None if fix is None else (way or "").startswith(fix)


def test_the_names_that_trl_uses_today_mean_keys_of_ppo() -> None:
    assert set(words._LIVING["ppo"].values()) <= set(Ppo.model_fields)
    assert not set(words._LIVING["ppo"]) & set(Ppo.model_fields)


def test_the_users_text_is_shortened() -> None:
    assert words.shortened("x" * 200) == "x" * 200
    assert words.shortened("x" * 201) == "x" * 200 + "... (201 characters)"
    assert words.describe("y" * 300).startswith("the string 'yyy") and "(302 characters)" in words.describe("y" * 300)
    shown = [words.describe(value) for value in (None, True, 2.5, [1], {})]
    assert shown == ["null", "true", "the number 2.5", "a list", "a mapping"]


def test_the_declaration_of_a_key_is_found_also_in_lists() -> None:
    info = words.field_at(("data", "prompts", "sources", 0, "weight"))
    assert info is not None and words.help_of(("seed",)).startswith("random seed of new weights")
    assert words.field_at(("sft", "trainer", "optim")) is None and words.help_of(("no", "such")) == ""
    assert words.did_you_mean("compair", ["ppo", "compare"]) == "; did you mean 'compare'?"
    assert words.did_you_mean("zzz", ["ppo", "compare"]) == ""
