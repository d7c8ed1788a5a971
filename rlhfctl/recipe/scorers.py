"""The table of the names of scorers in a recipe: where each may stand, and which are Python functions.

A scorer stands in `ppo.rewards` or `compare.judges` by its name, or as module:name. What builds each is in
rewards/build.py; which stage asks for which scorers is in graph.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Place = Literal["ppo.rewards", "compare.judges"]

REWARD = "reward"  # in ppo.rewards: what the recipe's reward section gives, a model or a function
REWARD_MODEL, REWARD_FUNCTION, GOLD = "reward_model", "reward_function", "gold"
FUNCTION = "module:name"  # the kind of every Python function that a recipe names itself
FUNCTION_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

SCORERS: dict[str, tuple[Place, ...]] = {
    REWARD: ("ppo.rewards",),
    GOLD: ("compare.judges",),
    REWARD_MODEL: ("compare.judges",),
    REWARD_FUNCTION: ("compare.judges",),
}
"""Name of a scorer -> where a recipe may name it. rewards/build.py has what builds it."""


def names_in(place: Place) -> tuple[str, ...]:
    """Return the names that may stand at a place of the recipe, beside module:name."""
    return tuple(name for name, places in SCORERS.items() if place in places)


def unknown_in(place: Place, given: Iterable[str]) -> list[str]:
    """Return those of the given names that may not stand at a place of the recipe."""
    return [name for name in given if name not in names_in(place) and not FUNCTION_NAME.fullmatch(name)]


def kind_of(name: str) -> str:
    """Tell the kind of scorer that a name in a recipe stands for: a key of build.BUILDERS."""
    return FUNCTION if ":" in name else name
