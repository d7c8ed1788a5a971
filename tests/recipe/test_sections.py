"""Rules of sections as data: paths relative to the section, all faults at once, and a new stage in one class."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init, Lora, Model, Prompts, Recipe, Rule, Section, Source, Stage
from rlhfctl.recipe.words import sections

MINIMAL: dict[str, Any] = {"name": "x", "model": {"path": "a"}}


class Taste(Stage):
    """A new stage, as a developer would write it in a file of sections/."""

    lora: Lora | None = None
    sweet: int = 0
    sour: list[str] = []  # noqa: RUF012 # pydantic copies it

    RULES: ClassVar[tuple[Rule[Any], ...]] = (
        Rule("sweet", "{sweet} is above 3, said {at}", "lower {key}", lambda taste: taste.sweet > 3, about=("sour",)),
        Rule(
            "sour.{what}",
            "no {what!r} among {sour}",
            "remove it",
            lambda taste: [{"what": name} for name in taste.sour if name.isupper()],
        ),
    )


class Menu(Recipe):
    """A recipe with one more stage, added by one line."""

    taste: Taste | None = None


def kinds(section: type[Section] = Recipe) -> Iterator[type[Section]]:
    """All sections with rules of their own."""
    yield section
    for one in section.__subclasses__():
        yield from kinds(one)


ALL_RULES = {
    (kind, rule) for kind in kinds(Section) if kind is not Taste for rule in vars(kind).get("RULES", ())
}  # Recipe's are those of rules.py


def test_a_rule_is_relative_to_where_its_section_stands() -> None:
    taste = Taste(sweet=5, sour=["a", "B", "C"])
    for at in ("taste", "rounds.2.taste"):
        first, *others = taste.conflicts(at)
        assert (first.key, first.about) == (f"{at}.sweet", (f"{at}.sour",))
        assert (first.what, first.fix) == (f"5 is above 3, said {at}", "lower sweet")
        assert [conflict.key for conflict in others] == [f"{at}.sour.B", f"{at}.sour.C"]
        assert others[0].what == "no 'B' among a, B, C"
    assert next(taste.conflicts()).key == "sweet"
    assert list(Taste(sweet=3).conflicts("taste")) == []


def test_a_section_that_stands_twice_says_where_each_fault_is() -> None:
    model = Model(path="a", init=Init(hidden_size=9, num_hidden_layers=1, num_attention_heads=2))
    for at in ("model", "members.1.model"):
        assert [conflict.key for conflict in model.conflicts(at)] == [f"{at}.path", f"{at}.init.hidden_size"]
        assert all(key.startswith(f"{at}.") for conflict in model.conflicts(at) for key in conflict.about)
    without = next(Model().conflicts("second"))
    assert without.key == "second" and "second.path" in without.fix and without.about == ("second.init", "second.path")


def test_sections_in_sections_and_in_lists_are_checked() -> None:
    listed = Prompts.model_validate({"sources": [{"source": "a.jsonl"}, {"source": "b.jsonl", "rows": 3}]})
    assert [conflict.key for conflict in listed.conflicts("data.prompts")] == ["data.prompts.sources.1.rows"]
    apart = Prompts(source="a.jsonl", test_source=Source(source="builtin:none", rows=1))
    assert [conflict.key for conflict in apart.conflicts("data.prompts")] == ["data.prompts.test_source.source"]


def test_a_new_stage_is_one_class_and_one_line() -> None:
    menu = Menu.model_validate({**MINIMAL, "lora": {"r": 3}, "taste": {"sweet": 1}, "sft": None, "compare": {
        "judges": ["a:b"]}, "data": {"prompts": {"source": "builtin:reviews", "rows": 200}}})  # fmt: skip
    assert menu.taste is not None and menu.taste.lora == Lora(r=3), "it trains, so it inherits lora"
    with pytest.raises(ValidationError, match=r"taste\.sweet: 4 is above 3") as caught:
        Menu.model_validate({**MINIMAL, "taste": {"sweet": 4, "sour": ["A"]}})
    keys = [conflict.key for conflict in caught.value.errors()[0]["ctx"]["conflicts"]]
    assert keys == ["taste.sweet", "taste.sour.A", ""], "sections first, then what is between them"
    assert dict(sections(Menu))["taste"] == ["lora", "sweet", "sour"]


def test_stages_that_train_inherit_lora_and_others_do_not() -> None:
    data = {name: {"source": "builtin:reviews", "rows": 300} for name in ("demonstrations", "preferences", "prompts")}
    whole = {**MINIMAL, "lora": {}, "data": data, "sft": {}, "reward": {}, "ppo": {"lora": None}, "compare": {}}
    recipe = Recipe.model_validate(whole)
    assert recipe.sft is not None and recipe.sft.lora is recipe.lora
    assert recipe.reward is not None and recipe.reward.trains and recipe.reward.lora is recipe.lora
    assert recipe.ppo is not None and recipe.ppo.lora is None
    ready = Recipe.model_validate({**whole, "reward": {"model": "a/b"}}).reward
    assert ready is not None and not ready.trains and ready.lora is None


def test_no_rule_of_a_section_knows_where_it_stands() -> None:
    """Each key of a rule, and each that it is about, is a key of the section itself or of one inside it."""
    for kind, rule in ALL_RULES - {(Recipe, rule) for rule in Recipe.RULES}:
        for key in (rule.key, *rule.about):
            names = {name for one in [kind, *kind.__subclasses__(), *kinds(kind)] for name in one.model_fields}
            assert key == "" or key.split(".")[0] in names, (kind, key)


def placeholders(rule: Rule[Any]) -> set[str]:
    parts = [part for text in (rule.key, rule.what, rule.fix) for part in Formatter().parse(text)]
    return {name for _, name, _, _ in parts if name is not None}


def test_each_placeholder_has_a_value() -> None:
    """A placeholder is {at}, {key}, an attribute, or one of the values that a rule of a list returns."""
    returned = {"option", "instead", "judge", "scorer", "metric", "rows", "processes"}
    for kind, rule in ALL_RULES:
        if kind is not Recipe:
            for name in placeholders(rule) - {"at", "key", *returned, *kind.model_fields}:
                assert hasattr(kind, name), (kind, name)
    whole = load_recipe(Path(__file__).parent / "golden" / "sample.yaml").recipe
    for rule in Recipe.RULES:
        for name in placeholders(rule) - {"", *returned}:
            attrgetter(name)(whole)
