"""The metrics of an update, from its experience and its steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_loops import (
    trained,
)

from rlhfctl.training.rl.metrics import update_metrics


def test_token_entropy_is_that_of_the_sampled_tokens_whatever_the_bonus(tmp_path: Path) -> None:
    """With an entropy bonus the exact entropy over the PPO epochs has a name of its own."""
    for coef in (0.0, 0.3):
        loop = trained(tmp_path / str(coef), 2, entropy_coef=coef)
        for batch, entry in zip(loop.batches, loop.history, strict=True):
            sampled = -float(batch.logprobs[batch.response_mask].mean())
            assert entry["token_entropy"] == pytest.approx(sampled, abs=1e-6)
            assert ("policy_entropy" in entry) is (coef > 0)
    assert abs(entry["policy_entropy"] - entry["token_entropy"]) > 1e-3


def test_without_a_critic_its_metrics_are_left_out(tmp_path: Path) -> None:
    batch = trained(tmp_path, 1).batches[0]
    section, steps = trained(tmp_path / "again", 1).section, [{"policy_loss": 1.0}, {"policy_loss": 3.0}]
    whole = update_metrics(batch, steps, section)
    batch.values = batch.returns = torch.empty(0)
    bare = update_metrics(batch, steps, section)
    assert whole.keys() - bare.keys() == {"value_mean", "explained_variance"}
    assert bare["policy_loss"] == 2.0 and bare["optimizer_steps"] == 2.0
    assert bare["rlhf_reward"] == pytest.approx(bare["score"] - section.kl_coef * bare["kl"])
    assert bare["length"] == pytest.approx(sum(len(response.ids) for response in batch.responses) / 8)
    batch.rollout_gap = None
    assert bare.keys() - update_metrics(batch, steps, section).keys() == {"rollout_gap"}
