"""Read the names of scorers in a recipe: the kind of each, and which of them are Python functions.

A scorer is named in `ppo.rewards` or `compare.judges` by its kind, or as module:name. Leaves out building scorers
(rewards/build.py) and which stage uses which scorers (graph.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from rlhfctl.recipe.schema import Recipe

REWARD = "reward"  # in ppo.rewards: the model or function of the recipe's reward section
REWARD_MODEL, REWARD_FUNCTION, GOLD = "reward_model", "reward_function", "gold"
FUNCTION = "module:name"  # the kind of every Python function that a recipe names


def kind_of(name: str) -> str:
    """Return the kind of scorer that a name in a recipe means: a key of build.BUILDERS."""
    return FUNCTION if ":" in name else name


def functions_among(scorers: Iterable[str], recipe: Recipe) -> list[str]:
    """List the functions that a stage's result depends on: that of the reward section, then those among `scorers`."""
    section = recipe.reward
    functions = [section.function] if section is not None and section.function is not None else []
    return [*functions, *(name for name in scorers if kind_of(name) == FUNCTION)]
