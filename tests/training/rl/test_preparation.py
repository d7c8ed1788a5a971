"""What is checked and made before a loop starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator
from small_loops import (
    loop_for,
)

from rlhfctl.errors import EngineError
from rlhfctl.models.packing import max_stable_rope_length
from rlhfctl.training.rl.preparation import has_low_precision, require_steady_positions


@pytest.mark.parametrize(("before", "bf16"), [("no", True), ("bf16", False)])
def test_the_precision_is_its_own_whatever_the_stage_before_used(before: str, bf16: bool, tmp_path: Path) -> None:
    Accelerator(mixed_precision=before)  # what a trainer of an earlier stage leaves in this process
    loop = loop_for(tmp_path, bf16=bf16)
    assert loop.accelerator.mixed_precision == ("bf16" if bf16 else "no")


def test_prompts_beyond_steady_rotary_angles_are_refused_and_others_are_not(tmp_path: Path) -> None:
    loop = loop_for(tmp_path)
    require_steady_positions(loop.section, loop.roles, loop.data)  # positions of this model never change
    loop.roles.policy.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    steady = max_stable_rope_length(loop.roles.policy.config)
    assert steady is not None
    longest = max(map(len, loop.data.prompts))
    fits = loop.section.model_copy(update={"response_length": steady - longest})
    require_steady_positions(fits, loop.roles, loop.data)
    longer = loop.section.model_copy(update={"response_length": steady - longest + 1})
    with pytest.raises(EngineError, match=f"grows beyond {steady} tokens"):
        require_steady_positions(longer, loop.roles, loop.data)


def test_halved_or_quantized_numbers_are_low_precision(tmp_path: Path) -> None:
    full = loop_for(tmp_path / "full")
    assert not has_low_precision(full.section, full.roles, full.trained)
    assert has_low_precision(full.section.model_copy(update={"bf16": True}), full.roles, full.trained)
    half = {name: parameter.bfloat16() for name, parameter in full.trained.items()}
    assert has_low_precision(full.section, full.roles, half)
