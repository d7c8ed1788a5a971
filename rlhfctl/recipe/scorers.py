"""Read the names of scorers in a recipe: which kind each one is, and which of them are Python functions.

A scorer stands in `ppo.rewards` or `compare.judges` by its kind, or as module:name. What builds each kind is in
rewards/build.py; which stage asks for which scorers is in graph.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlhfctl.recipe.schema import Recipe

REWARD = "reward"  # in ppo.rewards: what the recipe's reward section gives, a model or a function
REWARD_MODEL, REWARD_FUNCTION, GOLD = "reward_model", "reward_function", "gold"
FUNCTION = "module:name"  # the kind of every Python function that a recipe names itself


def kind_of(name: str) -> str:
    """Tell the kind of scorer that a name in a recipe stands for: a key of build.BUILDERS."""
    return FUNCTION if ":" in name else name


def functions_among(scorers: Iterable[str], recipe: Recipe) -> list[str]:
    """List the functions that a stage's result depends on: that of the reward section, then those among `scorers`."""
    section = recipe.reward
    functions = [section.function] if section is not None and section.function is not None else []
    return [*functions, *(name for name in scorers if kind_of(name) == FUNCTION)]
