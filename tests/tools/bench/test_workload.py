"""Workloads: what both engines can do of a recipe."""

from __future__ import annotations

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.bench.workload import WARM_UP, comparable, reference_workload


def test_an_adapter_critic_needs_lora() -> None:
    section = reference_workload("small").ppo.model_copy(update={"lora": None})
    with pytest.raises(RlhfctlError, match="needs LoRA"):
        comparable(section, 1, "adapter")


def test_both_engines_get_settings_that_both_support() -> None:
    given = reference_workload("small").ppo.model_copy(
        update={"bf16": True, "top_k": 5, "entropy_coef": 0.1, "gradient_accumulation_steps": 4}
    )
    section = comparable(given, 3, "model")
    assert (section.bf16, section.top_k, section.entropy_coef, section.critic_kind) == (False, 0, 0.0, "model")
    assert section.gradient_accumulation_steps == 1 and section.batch_size == given.batch_size == 128
    assert section.total_episodes == 128 * (3 + WARM_UP)
