"""TRL's arguments: sizes, adapters and the older PPOConfig, with numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.importing.findings import Draft, Fields, Job, Stage
from rlhfctl.importing.trl import translate


def recipe(stage: Stage, **given: Any) -> dict[str, Any]:
    draft = Draft({"name": "x"})
    translate(Fields(Job("TRL", stage, given, "x.sh"), draft))
    return draft.recipe


def test_the_older_ppo_counts_optimizer_steps_of_a_batch() -> None:
    made = recipe("ppo", model_name="gpt2", batch_size=64, mini_batch_size=8, gradient_accumulation_steps=2, steps=640)
    ppo = made["ppo"]
    assert (ppo["per_device_train_batch_size"], ppo["num_mini_batches"], ppo["total_episodes"]) == (64, 4, 640)
    assert ppo["kl_coef"] == 0.2 and ppo["learning_rate"] == 1.41e-5  # its defaults
    assert "gradient_accumulation_steps" not in ppo and made["model"] == {"path": "gpt2"}


@pytest.mark.parametrize(("penalty", "estimator"), [("kl", "k1"), ("mse", "k2"), ("abs", None)])
def test_the_older_kl_penalties_have_other_names(penalty: str, estimator: str | None) -> None:
    assert recipe("ppo", model_name="a", kl_penalty=penalty)["ppo"].get("kl_estimator") == estimator


def test_adapters_are_written_with_peft_alone() -> None:
    given = {"model_name_or_path": "a/b", "lora_r": 4}
    assert "lora" not in recipe("sft", **given)["sft"]
    lora = recipe("sft", **given, use_peft=True)["sft"]["lora"]
    assert lora == {"r": 4, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("given", "token"),
    [({}, None), ({"stop_token": "eos"}, "eos"), ({"missing_eos_penalty": 1.0}, "eos"), ({"stop_token": None}, None)],
)
def test_a_response_ends_as_trl_ends_it(given: dict[str, Any], token: str | None) -> None:
    ppo = recipe("ppo", sft_model_path="a/b", reward_model_path="a/rm", total_episodes=8, **given)["ppo"]
    assert ppo["stop_token"] == token
