"""Helpers of tests that change the sample recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.errors import Problem, RecipeError
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import (
    Recipe,
)

SAMPLE = Path(__file__).parent / "golden" / "sample.yaml"


def problems(*overrides: str) -> list[Problem]:
    """What is wrong with the sample once changed."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(SAMPLE, overrides)
    return caught.value.problems


def recipe(*overrides: str) -> Recipe:
    return load_recipe(SAMPLE, overrides).recipe


def sample_with_inherited_lora() -> Path:
    """The sample without its own `lora: null` under sft, which is what keeps it valid."""
    inherited = SAMPLE.read_text(encoding="utf-8").replace("lora: null ", "# ")
    Path("inherited.yaml").write_text(inherited, encoding="utf-8")
    return Path("inherited.yaml")
