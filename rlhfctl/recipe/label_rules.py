"""Define the rules on labels and rounds between the sections of a recipe as data; rules.py puts them among the others.

Rules about the keys of `sample`, `label` or `rounds` alone are in these sections (sections/). Keys and placeholders
here are paths from the top of the recipe.
"""

from __future__ import annotations

from rlhfctl.recipe.sections.base import Rule
from rlhfctl.recipe.sections.label import BUILTIN
from rlhfctl.recipe.sections.whole import Sections


def _reads_labels(recipe: Sections) -> bool:
    preferences = recipe.data.preferences
    named = [] if preferences is None else [preferences.source, *(one.source for one in preferences.sources or ())]
    return "stage:label" in named


def _trains_on_preferences(recipe: Sections) -> bool:
    return recipe.reward is not None and recipe.reward.kind == "trained"


LABELS: tuple[Rule[Sections], ...] = (
    Rule(
        "label",
        "judges what the sample stage writes, but there is no sample section",
        "add one: `sample: {{}}`",
        lambda recipe: recipe.label is not None and recipe.sample is None,
        about=("sample",),
    ),
    Rule(
        "label",
        "nobody reads the labels: the reward is not trained on them",
        "train it (`reward: {{}}`) on data.preferences with source: stage:label, or remove label",
        lambda recipe: recipe.label is not None and not (_reads_labels(recipe) and _trains_on_preferences(recipe)),
        about=("reward", "data.preferences.source"),
    ),
    Rule(
        "label.by",
        f"{BUILTIN} judges builtin:reviews alone, but data.prompts is another source",
        "use people or a Python function (module:name)",
        lambda recipe: (
            recipe.label is not None
            and recipe.label.by == BUILTIN
            and recipe.data.prompts is not None
            and not recipe.data.prompts.has_gold
        ),
        about=("data.prompts.source",),
    ),
    Rule(
        "sample.candidates",
        "is for questions on which members of the last round's reward model differ, but it has no members",
        "set rounds and reward.members above 1, or leave it out",
        lambda recipe: (
            recipe.sample is not None
            and recipe.sample.candidates > 1
            and (recipe.rounds is None or recipe.reward is None or recipe.reward.members < 2)
        ),
        about=("rounds", "reward.members"),
    ),
    Rule(
        "rounds",
        "repeats sample, label, reward and ppo, but not all of them are there",
        "add the missing sections, or remove rounds",
        lambda recipe: recipe.rounds is not None and None in (recipe.sample, recipe.label, recipe.reward, recipe.ppo),
        about=("sample", "label", "reward", "ppo"),
    ),
    Rule(
        "rounds.count",
        "is so many that a round would have none of the questions of sample.prompts",
        "lower it, or raise sample.prompts",
        lambda recipe: (
            recipe.rounds is not None
            and recipe.sample is not None
            and min(recipe.rounds.questions(recipe.sample.prompts), default=1) < 1
        ),
        about=("sample.prompts", "rounds.labels"),
    ),
    Rule(
        "seeds.from",
        "a stage that is repeated in each round cannot be the first: its round would read models of several seeds",
        "use sample or an earlier stage",
        lambda recipe: (
            recipe.rounds is not None
            and recipe.seeds is not None
            and recipe.seeds.start in ("label", "reward", "heldout", "card", "ppo")
        ),
        about=("seeds", "rounds"),
    ),
    Rule(
        "rounds",
        "each policy goes on from the one before, but TRL's PPOTrainer starts from base* alone",
        "use ppo.engine: rlhfctl",
        lambda recipe: recipe.rounds is not None and recipe.ppo is not None and recipe.ppo.engine == "trl",
        about=("ppo.engine",),
    ),
)
