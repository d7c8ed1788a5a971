"""TRL's GRPOConfig and RLOOConfig: options that an algorithm here has, their defaults, a recipe without faults."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.importing.findings import Draft, Fields, Job
from rlhfctl.importing.trl import translate
from rlhfctl.recipe.schema import Ppo


def drafted(algorithm: str, **given: Any) -> Draft:
    draft = Draft({"name": "x"})
    translate(Fields(Job("TRL", "ppo", {"model_name_or_path": "a/b", **given}, "x.sh", (), algorithm), draft))
    return draft


def test_grpo_with_its_defaults() -> None:
    made = drafted("grpo").recipe["ppo"]
    assert (made["num_generations"], made["kl_coef"], made["num_ppo_epochs"]) == (8, 0.0, 1)
    assert (made["loss_type"], made["response_length"], made["learning_rate"]) == ("dapo", 512, 1e-6)
    assert list(Ppo(**made).conflicts("ppo")) == []


@pytest.mark.parametrize(
    ("given", "key", "expected"),
    [
        ({"scale_rewards": True}, "scale_rewards", "group"),
        ({"scale_rewards": False}, "scale_rewards", "none"),
        ({"scale_rewards": "batch"}, "scale_rewards", "batch"),
        ({"loss_type": "bnpo"}, "loss_type", "dapo"),
        ({"loss_type": "dr_grpo"}, "loss_type", "dr_grpo"),
        ({"loss_type": "cispo"}, "loss_type", None),
        ({"epsilon": 0.1}, "cliprange", 0.1),
        ({"num_iterations": 3}, "num_ppo_epochs", 3),
    ],
)
def test_options_of_grpo(given: dict[str, Any], key: str, expected: Any) -> None:
    assert drafted("grpo", **given).recipe["ppo"].get(key) == expected


def test_rloo_takes_one_step_per_update() -> None:
    draft = drafted("rloo", epsilon=0.1, num_iterations=3, per_device_train_batch_size=4)
    made = draft.recipe["ppo"]
    assert (made["algorithm"], made["num_generations"], made["kl_coef"]) == ("rloo", 2, 0.05)
    assert not {"cliprange", "num_ppo_epochs", "loss_type", "scale_rewards"} & made.keys()
    assert list(Ppo(**made).conflicts("ppo")) == []
    assert sum("one optimizer step per update" in finding.words for _, finding in draft.findings) == 2


def test_what_is_left_to_say() -> None:
    said = " ".join(str(finding) for _, finding in drafted("grpo", reward_funcs="accuracy", use_vllm=True).findings)
    assert "passes x prompts x num_generations" in said and "reward.function" in said and "without vLLM" in said
