"""The table of algorithms: one more entry, without a critic, gives the numbers worked out by hand and learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_loops import BATCH, KINDS, learns_and_goes_on_after_a_stop, loop_for, trained
from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.algorithms import ALGORITHMS, Algorithm
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.minibatch import Given
from rlhfctl.training.rl.ppo_math import PolicyTerms, masked_sum

# ---------------------------------------------------------------- REINFORCE with the batch's mean as baseline


def reward_to_go(experience: Experience, section: Ppo) -> tuple[Tensor, None]:
    """Every token gets the sum of its response's rewards, less the mean of these sums over the batch."""
    total = experience.rewards.sum(1)
    advantages = (total - total.mean())[:, None].expand_as(experience.rewards)
    return advantages.masked_fill(~experience.response_mask, 0.0), None


def score_function(logprobs: Tensor, given: Given, section: Ppo) -> PolicyTerms:
    """-A log p, the mean over the tokens of the minibatch (Williams 1992)."""
    log_ratio = (logprobs - given.old_logprobs).detach().masked_fill(~given.mask, 0.0)
    ratio = log_ratio.exp()
    return PolicyTerms(
        loss=masked_sum(-given.advantages * logprobs, given.mask) / given.tokens,
        clip_fraction=None,
        approx_kl=masked_sum(log_ratio**2, given.mask) / 2 / given.tokens,
        ratio_mean=masked_sum(ratio, given.mask) / given.tokens,
        ratio=ratio,
        clipped=torch.zeros_like(given.mask),
    )


@pytest.fixture(autouse=True)
def batch_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Algorithm(advantages=reward_to_go, policy_loss=score_function, needs_critic=False)
    monkeypatch.setitem(ALGORITHMS, "batch_mean", entry)


def test_an_algorithm_without_a_critic_gives_the_numbers_by_hand(tmp_path: Path) -> None:
    options = {"kind": None, "dtype": torch.float64, "num_ppo_epochs": 1, "kl_coef": 0.5, "trace_every": 1}
    loop = trained(tmp_path, 3, algorithm="batch_mean", learning_rate=4e-2, **options)
    for batch, entry in zip(loop.batches, loop.history, strict=True):
        totals = [
            float(batch.scores[i])
            - 0.5 * sum(float(batch.logprobs[i, t] - batch.ref_logprobs[i, t]) for t in range(int(batch.lengths[i])))
            for i in range(BATCH)
        ]
        mean, loss = sum(totals) / BATCH, 0.0
        for i, total in enumerate(totals):
            for t in range(int(batch.lengths[i])):
                assert float(batch.advantages[i, t]) == pytest.approx(total - mean, abs=1e-12)
                loss -= (total - mean) * float(batch.logprobs[i, t])
        assert entry["policy_loss"] == pytest.approx(loss / int(batch.lengths.sum()), abs=1e-9)
        assert batch.values.numel() == batch.returns.numel() == 0
        assert not {"value_loss", "value_mean", "explained_variance"} & entry.keys()
    assert len({round(total, 6) for total in totals}) > 1 and abs(loss) > 1e-3
    assert all(name.startswith("policy.") for name in loop.roles.state())
    assert len(list((tmp_path / "traces").iterdir())) == 3


def test_an_algorithm_without_a_critic_learns_and_goes_on(tmp_path: Path) -> None:
    options = {
        "kind": None,
        "algorithm": "batch_mean",
        "learning_rate": 4e-2,
        "num_ppo_epochs": 1,
        "lr_scheduler_type": "constant",
        "kl_coef": 0.01,
        "checkpoint_steps": 10,
    }
    learns_and_goes_on_after_a_stop(tmp_path, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_that_the_algorithm_does_not_need_is_left_alone(kind: str, tmp_path: Path) -> None:
    loop = trained(tmp_path, 2, kind=kind, algorithm="batch_mean", num_ppo_epochs=1)
    assert loop.done == 2 and all(name.startswith("policy.") for name in loop.roles.state())
    assert not any(".critic." in name for name in loop.roles.state())


def test_an_algorithm_that_needs_a_critic_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ppo needs a critic"):
        loop_for(tmp_path, kind=None)
