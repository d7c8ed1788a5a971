"""Define the rules on the judges of a comparison, and on its search for prompts, beside the other sections, as data.

rules.py puts them among the others. Keys and placeholders here are paths from the top of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlhfctl.recipe.sections.base import Rule
from rlhfctl.recipe.sections.scorers import CORRECT, PASSES, PROMPTED, UNIT_TESTS
from rlhfctl.recipe.sections.whole import Sections, classifies

PROMPT_SEARCH: Rule[Sections] = Rule(
    "compare.prompt_search",
    "looks for prompts of a frozen classifier, but reward.prompted_classifier is not set",
    "set it, or remove compare.prompt_search",
    lambda recipe: recipe.compare is not None and recipe.compare.prompt_search is not None and not classifies(recipe),
    about=("reward", "reward.prompted_classifier"),
)


def _has_judge(recipe: Sections, judge: str) -> bool:
    return recipe.compare is not None and judge in recipe.compare.judges


def _gold_on_a_file(recipe: Sections) -> bool:
    prompts = recipe.data.prompts
    return _has_judge(recipe, "gold") and prompts is not None and not prompts.has_gold


def _no_reward_model(recipe: Sections) -> bool:
    reward = recipe.reward
    return _has_judge(recipe, "reward_model") and (reward is None or not reward.has_model)


def _no_reward_function(recipe: Sections) -> bool:
    reward = recipe.reward
    return _has_judge(recipe, "reward_function") and (reward is None or reward.kind != "function")


def _no_unit_tests(recipe: Sections) -> list[Mapping[str, str]]:
    reward, asked = recipe.reward, recipe.compare.judges if recipe.compare is not None else []
    missing = reward is None or reward.unit_tests is None
    return [{"judge": judge} for judge in (UNIT_TESTS, PASSES) if missing and judge in asked]


def _no_prompted_classifier(recipe: Sections) -> list[Mapping[str, str]]:
    asked = recipe.compare.judges if recipe.compare is not None else []
    return [{"judge": judge} for judge in (PROMPTED, CORRECT) if judge in asked and not classifies(recipe)]


def _no_heldout(recipe: Sections) -> bool:
    return _has_judge(recipe, "heldout") and (recipe.reward is None or not recipe.reward.heldout)


JUDGES: tuple[Rule[Sections], ...] = (
    Rule(
        "compare.judges",
        "gold scores only builtin:reviews, but data.prompts is another source",
        "take it out of compare.judges",
        _gold_on_a_file,
        about=("data.prompts.source",),
    ),
    Rule(
        "compare.judges",
        "reward_model needs a reward section that trains or names a model",
        "take it out of compare.judges",
        _no_reward_model,
        about=("reward", "reward.model", "reward.function"),
    ),
    Rule(
        "compare.judges",
        "reward_function needs reward.function",
        "take it out of compare.judges",
        _no_reward_function,
        about=("reward", "reward.function"),
    ),
    Rule(
        "compare.judges",
        "{judge} needs reward.unit_tests",
        "take it out of compare.judges",
        _no_unit_tests,
        about=("reward", "reward.unit_tests"),
    ),
    Rule(
        "compare.judges",
        "{judge} needs reward.prompted_classifier",
        "take it out of compare.judges",
        _no_prompted_classifier,
        about=("reward", "reward.prompted_classifier"),
    ),
    Rule(
        "compare.judges",
        "heldout needs reward.heldout: true, which trains that judge",
        "set it, or take heldout out of compare.judges",
        _no_heldout,
        about=("reward", "reward.heldout"),
    ),
)
