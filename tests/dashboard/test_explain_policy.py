"""The policy's loss of one token, explained by the algorithm: by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlhfctl.dashboard.explain_policy import policy_epoch

# p was 1/2 when sampled and is 3/4 now; the reference gives 1/4; top-k kept all.
RECORD: dict[str, Any] = {
    "policy_logprobs": [math.log(0.5)], "reference_logprobs": [math.log(0.25)], "kept_logprobs": [0.0],
    "epochs": [{"logprobs": [math.log(0.75)], "ratio": [1.5], "clipped": [True]}],
}  # fmt: skip
CLIPPED = {"cliprange": 0.2}


def steps(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {step.name: step for step in policy_epoch(RECORD | more, settings, 2.0, 0, 0)}


def test_a_clipped_ratio() -> None:
    found = steps(CLIPPED)
    assert list(found) == ["epoch 1: ratio", "epoch 1: objective"]
    assert found["epoch 1: ratio"].value == pytest.approx(1.5) and found["epoch 1: ratio"].agrees
    assert found["epoch 1: objective"].value == pytest.approx(1.2 * 2)
    assert "the clip holds it" in found["epoch 1: objective"].worked


@pytest.mark.parametrize("algorithm", ["a2c", "reinforce", "rloo"])
def test_a_loss_without_a_ratio(algorithm: str) -> None:
    (found,) = steps({"algorithm": algorithm}).values()
    assert found.formula == "A log p(now); its negative is the loss"
    assert found.value == pytest.approx(2 * math.log(0.75))
    (weighed,) = steps({"algorithm": algorithm}, importance=[0.5]).values()
    assert weighed.value == pytest.approx(math.log(0.75)) and "importance weight 0.5" in weighed.formula


def test_grpo_has_the_kl_beside_the_clipped_objective() -> None:
    found = steps(CLIPPED | {"algorithm": "grpo", "kl_coef": 0.3})
    assert list(found) == ["epoch 1: ratio", "epoch 1: objective", "epoch 1: KL in the loss"]
    last = found["epoch 1: KL in the loss"]
    assert last.value == pytest.approx(1 / 3 - 1 - math.log(1 / 3)) and "0.3 x it (kl_coef)" in last.formula
