"""OpenRLHF's options: batches of prompts and samples, weights of sources and rewards, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.importing.findings import Draft, Fields, Job, Stage
from rlhfctl.importing.openrlhf import translate


def recipe(stage: Stage, **given: Any) -> dict[str, Any]:
    draft = Draft({"name": "x"})
    translate(Fields(Job("OpenRLHF", stage, {"pretrain": "a/b", **given}, "x.sh"), draft))
    return draft.recipe


def test_ppo_counts_responses_where_openrlhf_counts_prompts() -> None:
    sizes = {"rollout_batch_size": 32, "n_samples_per_prompt": 4, "train_batch_size": 16, "micro_train_batch_size": 8}
    ppo = recipe("ppo", **sizes, num_episodes=3, max_samples=1000, lr_warmup_ratio=0.1)["ppo"]
    assert ppo["per_device_train_batch_size"] * ppo["gradient_accumulation_steps"] == 32 * 4
    assert ppo["num_mini_batches"] == 128 // 16 and ppo["num_generations"] == 4
    assert ppo["total_episodes"] == 3 * 1000 * 4
    assert ppo["warmup_steps"] == 10  # a tenth of 12000 // 128 = 93 updates
    assert (ppo["lam"], ppo["cliprange_value"], ppo["kl_coef"]) == (1.0, 0.5, 0.01)  # its defaults


@pytest.mark.parametrize(("total", "micro", "accumulated"), [(256, 2, 128), (128, 8, 16), (4, 8, 1)])
def test_a_step_has_as_many_rows_in_one_process(total: int, micro: int, accumulated: int) -> None:
    trainer = recipe("sft", train_batch_size=total, micro_train_batch_size=micro)["sft"]["trainer"]
    assert trainer["per_device_train_batch_size"] == micro and trainer["gradient_accumulation_steps"] == accumulated
    assert trainer["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1} and trainer["warmup_steps"] == 0.03


@pytest.mark.parametrize(
    ("given", "reward", "rewards"),
    [
        ({"reward_pretrain": "org/rm"}, {"model": "org/rm"}, None),
        ({"reward_pretrain": "org/rm,org/other"}, None, {"org/rm": 1.0, "org/other": 1.0}),
        ({"remote_rm_url": "http://h:1/x"}, {"function": "http://h:1/x"}, None),
        ({"remote_rm_url": "reward_func.py"}, {"model": "your-reward-model"}, None),
    ],
)
def test_where_the_reward_comes_from(
    given: dict[str, Any], reward: dict[str, Any] | None, rewards: dict[str, float] | None
) -> None:
    made = recipe("ppo", **given)
    assert made.get("reward") == reward and made["ppo"].get("rewards") == rewards


def test_sources_keep_their_weights() -> None:
    made = recipe("ppo", prompt_data="a/b,c/d", prompt_data_probs="0.9,0.1", max_samples=50)["data"]["prompts"]
    assert made["sources"] == [
        {"source": "a/b", "weight": 0.9, "limit": 50}, {"source": "c/d", "weight": 0.1, "limit": 50},
    ]  # fmt: skip
