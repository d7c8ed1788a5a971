"""Define the rules on the choice of sft's checkpoint (`sft.choose`) beside the other sections of a recipe, as data.

rules.py puts them among the others. Rules about its keys alone are in its section (sections/). Keys and placeholders
here are paths from the top of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlhfctl.recipe.sections.base import Rule
from rlhfctl.recipe.sections.scorers import HELDOUT_LOSS, PASSES, UNIT_TESTS
from rlhfctl.recipe.sections.whole import Sections


def _chosen_by(recipe: Sections) -> str | None:
    return recipe.sft.choose.by if recipe.sft is not None and recipe.sft.choose is not None else None


def _answers_nothing(recipe: Sections) -> bool:
    prompts = recipe.data.prompts
    samples = _chosen_by(recipe) not in (None, HELDOUT_LOSS)
    return samples and (prompts is None or not (prompts.eval or prompts.eval_source))


def _holds_nothing_out(recipe: Sections) -> bool:
    rows = recipe.data.demonstrations
    return _chosen_by(recipe) == HELDOUT_LOSS and rows is not None and rows.heldout is None


def _tests_nothing(recipe: Sections) -> list[Mapping[str, str]]:
    by, missing = _chosen_by(recipe), recipe.reward is None or recipe.reward.unit_tests is None
    return [{"scorer": by}] if missing and by is not None and by in (UNIT_TESTS, PASSES) else []


CHOICE: tuple[Rule[Sections], ...] = (
    Rule(
        "sft.choose",
        "compares samples to the eval prompts, and data.prompts holds none",
        "add data.prompts with eval above 0, or remove choose",
        _answers_nothing,
        about=("data.prompts", "data.prompts.eval"),
    ),
    Rule(
        "sft.choose.by",
        "heldout_loss needs held-out demonstrations",
        "set data.demonstrations.heldout, or name another scorer",
        _holds_nothing_out,
        about=("data.demonstrations.heldout",),
    ),
    Rule(
        "sft.choose.by",
        "{scorer} needs reward.unit_tests",
        "add them, or name another scorer",
        _tests_nothing,
        about=("reward", "reward.unit_tests"),
    ),
)
