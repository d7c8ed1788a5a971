"""The table of the names of scorers in a recipe: where each may stand, and which are Python functions.

A scorer stands in `ppo.rewards` or `compare.judges` by its name, or as module:name. What builds each is in
rewards/build.py; which stage asks for which scorers is in graph.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Place = Literal["ppo.rewards", "compare.judges"]

REWARD = "reward"  # in ppo.rewards: what the recipe's reward section gives, a model or a function
REWARD_MODEL, REWARD_FUNCTION, GOLD = "reward_model", "reward_function", "gold"
UNIT_TESTS, PASSES = "unit_tests", "passes"  # the outcome's score, and whether all tests hold (reward.unit_tests)
ENDPOINT = "endpoint"  # a judge of pairs: stages/endpoint.py asks it
HELDOUT = "heldout"  # the second reward model, which PPO never trains on (reward.heldout)
FUNCTION = "module:name"  # the kind of every Python function that a recipe names itself
FUNCTION_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Scorer:
    """Where a recipe may name a scorer, and a few words about it for the docs.

    `of_pairs`: it compares two responses and gives no score to one alone, so BUILDERS has no row for it.
    """

    places: tuple[Place, ...]
    words: str = ""
    of_pairs: bool = False


SCORERS: dict[str, Scorer] = {
    REWARD: Scorer(("ppo.rewards",), "the section"),
    GOLD: Scorer(("compare.judges",), "built-in task"),
    ENDPOINT: Scorer(("compare.judges",), "a model behind an API: compare.endpoint", of_pairs=True),
    REWARD_MODEL: Scorer(("compare.judges",)),
    REWARD_FUNCTION: Scorer(("compare.judges",)),
    HELDOUT: Scorer(("compare.judges",), "with reward.heldout"),
    UNIT_TESTS: Scorer(("compare.judges",), "with reward.unit_tests: the outcome's score"),
    PASSES: Scorer(("compare.judges",), "with reward.unit_tests: 1 if all tests hold, else 0"),
}
"""The scorers by name. What builds each is in rewards/build.py; stages/endpoint.py asks the judge of pairs."""


def names_in(place: Place) -> tuple[str, ...]:
    """Return the names that may stand at a place of the recipe, beside module:name."""
    return tuple(name for name, scorer in SCORERS.items() if place in scorer.places)


def described_in(place: Place) -> str:
    """List the names that may stand at a place of the recipe, each with the words about it."""
    return ", ".join(name + (f" ({SCORERS[name].words})" if SCORERS[name].words else "") for name in names_in(place))


def unknown_in(place: Place, given: Iterable[str]) -> list[str]:
    """Return those of the given names that may not stand at a place of the recipe."""
    return [name for name in given if name not in names_in(place) and not FUNCTION_NAME.fullmatch(name)]


def kind_of(name: str) -> str:
    """Tell the kind of scorer that a name in a recipe stands for: a key of build.BUILDERS."""
    return FUNCTION if ":" in name else name
