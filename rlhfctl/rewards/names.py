"""Read the names of scorers in a recipe: which kind each one is, and which functions a stage calls.

A scorer stands in `ppo.rewards` or `compare.judges` by its kind, or as module:name. Loads no torch: the pipeline
fingerprints functions by it, before anything is built. What builds each kind is in build.py.
"""

from __future__ import annotations

from rlhfctl.recipe.schema import Recipe

REWARD = "reward"  # in ppo.rewards: what the recipe's reward section gives, a model or a function
REWARD_MODEL, REWARD_FUNCTION, GOLD = "reward_model", "reward_function", "gold"
FUNCTION = "module:name"  # the kind of every Python function that a recipe names itself


def kind_of(name: str) -> str:
    """Tell the kind of scorer that a name in a recipe stands for: a key of build.BUILDERS."""
    return FUNCTION if ":" in name else name


def scorers_of(stage: str, recipe: Recipe) -> list[str]:
    """List the names of the scorers that a stage asks for, in the recipe's order."""
    if stage == "ppo" and recipe.ppo is not None:
        return [REWARD] if recipe.ppo.rewards is None else list(recipe.ppo.rewards)
    if stage == "compare" and recipe.compare is not None:
        return list(recipe.compare.judges)
    return []


def functions_of(stage: str, recipe: Recipe) -> list[str]:
    """List the functions that a stage's result depends on: that of the reward section, then those it names itself."""
    if stage not in ("ppo", "compare"):
        return []
    section = recipe.reward
    functions = [section.function] if section is not None and section.function is not None else []
    return [*functions, *(name for name in scorers_of(stage, recipe) if kind_of(name) == FUNCTION)]
