"""Helpers of tests that write a recipe and load it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.errors import RecipeError
from rlhfctl.recipe.load import LoadedRecipe, load_recipe

GOLDEN = Path(__file__).parent / "golden"
PRETRAINED = """\
name: small
model: {path: gpt2}
data:
  prompts: {source: "builtin:reviews", rows: 300}
reward: {function: "scores:length"}
ppo: {kl_coef: 0.1}
"""


def loaded(text: str, *overrides: str, name: str = "recipe.yaml") -> LoadedRecipe:
    """Write the text to a file of the current folder and load it."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return load_recipe(name, overrides)


def problems(text: str, *overrides: str) -> list[str]:
    """List the problems of a recipe that cannot be loaded."""
    with pytest.raises(RecipeError) as caught:
        loaded(text, *overrides)
    return [str(problem) for problem in caught.value.problems]
