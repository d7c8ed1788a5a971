"""The advantage of a whole response, explained by the algorithm: by hand, and where a number is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.dashboard.explain_responses import response_steps

RECORD: dict[str, Any] = {"response_reward": 0.9, "baseline": 0.4, "scale": 1.0, "advantages": [0.5, 0.5]}


def steps(record: dict[str, Any], **settings: Any) -> dict[str, Any]:
    found = response_steps(record, {"kl_coef": 0.5} | settings, [0.3, -0.1], 1.0)
    return {step.name: step for step in found}


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo"])
def test_the_kl_is_in_the_reward(algorithm: str) -> None:
    """1 - 0.5 x (0.3 - 0.1) = 0.9, over a baseline of 0.4."""
    found = steps(RECORD, algorithm=algorithm)
    assert list(found) == ["R, of the response", "baseline", "advantage"]
    assert found["R, of the response"].value == pytest.approx(0.9)
    assert found["advantage"].worked == "0.9 - 0.4" and found["advantage"].value == pytest.approx(0.5)
    assert all(step.agrees for step in found.values())
    assert ("earlier updates" in found["baseline"].formula) is (algorithm == "reinforce")
    wrong = steps(RECORD | {"response_reward": 1.0, "advantages": [0.6]}, algorithm=algorithm)
    assert not wrong["R, of the response"].agrees and not wrong["advantage"].agrees


def test_grpo_divides_the_score_and_leaves_the_kl_out() -> None:
    record = RECORD | {"response_reward": 1.0, "scale": 0.3, "advantages": [2.0]}
    found = steps(record, algorithm="grpo", scale_rewards="group")
    assert list(found) == ["R, of the response", "baseline", "scale", "advantage"]
    assert found["advantage"].worked == "(1 - 0.4) / 0.3" and found["advantage"].value == pytest.approx(2.0)
    assert "responses to this prompt" in found["scale"].formula
    assert "over the batch" in steps(record, algorithm="grpo", scale_rewards="batch")["scale"].formula
    plain = steps(record | {"scale": 1.0, "advantages": [0.6]}, algorithm="grpo", scale_rewards="none")
    assert "scale" not in plain and plain["advantage"].agrees
