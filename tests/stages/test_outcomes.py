"""The outcome critic in the ppo stage: a recipe without one prepares and publishes nothing."""

from __future__ import annotations

from typing import Any

from rlhfctl.recipe.schema import Ppo
from rlhfctl.stages import outcomes


def test_without_the_section_nothing_is_prepared_or_published() -> None:
    """The whole way, with training, saving and a second start: tests/e2e/test_coderl_recipe.py."""
    unused: Any = None
    assert outcomes.prepare(Ppo(), unused, unused, unused, unused, unused) == (None, {})
    assert outcomes.publish(None, unused, unused) == {}
