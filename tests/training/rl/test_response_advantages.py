"""Advantages per response by hand and by property, in running loops, and policies that learn from them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_loops import BATCH, learns_and_goes_on_after_a_stop, trained
from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.algorithm import COMPARES_RESPONSES, USED_BY, AlgorithmName
from rlhfctl.training.rl.algorithms import ALGORITHMS
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.response_advantages import COMPARED, flat_groups, response_advantages

PLAIN: dict[str, Any] = {"kind": None, "dtype": torch.float64, "kl_coef": 0.5}
WITHOUT_CRITIC = ("reinforce", "rloo", "grpo")


def made(rewards: list[list[float]], lengths: list[int], earlier: float = 0.0) -> Experience:
    table = torch.tensor(rewards, dtype=torch.float64)
    mask = torch.arange(table.shape[1])[None, :] < torch.tensor(lengths)[:, None]
    return cast(Experience, SimpleNamespace(rewards=table, response_mask=mask, earlier_reward=earlier))


def advantages(algorithm: AlgorithmName, experience: Experience, **options: Any) -> Tensor:
    found, returns = response_advantages(experience, Ppo(algorithm=algorithm, **options))
    assert returns is None
    return found


# Four responses to two prompts, of the rewards 1 - 0.1 = 0.9, 0.2, -1 and 0.6; the third has ended one column earlier.
REWARDS = [[-0.1, 1.0, 0.0], [0.0, 0.3, -0.1], [-0.5, -0.5, 0.0], [0.1, 0.2, 0.3]]
LENGTHS = [2, 3, 1, 3]


def spread(numbers: list[float]) -> Tensor:
    mask = torch.arange(3)[None, :] < torch.tensor(LENGTHS)[:, None]
    return torch.tensor(numbers, dtype=torch.float64)[:, None].expand(4, 3).masked_fill(~mask, 0.0)


def test_reinforce_by_hand() -> None:
    """The mean reward of earlier updates is 0.4."""
    found = advantages("reinforce", made(REWARDS, LENGTHS, earlier=0.4))
    assert torch.allclose(found, spread([0.5, -0.2, -1.4, 0.2]), atol=1e-12)


def test_rloo_by_hand() -> None:
    """Each response over the mean of the others: of one other with two, of three others with four."""
    two = advantages("rloo", made(REWARDS, LENGTHS), num_generations=2)
    assert torch.allclose(two, spread([0.7, -0.7, -1.6, 1.6]), atol=1e-12)
    four = advantages("rloo", made(REWARDS, LENGTHS), num_generations=4)
    others = [(0.2 - 1.0 + 0.6) / 3, (0.9 - 1.0 + 0.6) / 3, (0.9 + 0.2 + 0.6) / 3, (0.9 + 0.2 - 1.0) / 3]
    expected = [own - other for own, other in zip([0.9, 0.2, -1.0, 0.6], others, strict=True)]
    assert torch.allclose(four, spread(expected), atol=1e-12)


def test_grpo_by_hand() -> None:
    """Means 0.55 and -0.2; deviations (n - 1) 0.7 / sqrt(2) and 1.6 / sqrt(2); of the batch sqrt(2.1475 / 3)."""
    experience = made(REWARDS, LENGTHS)
    centred = [0.35, -0.35, -0.8, 0.8]
    deviations = [0.7 / math.sqrt(2)] * 2 + [1.6 / math.sqrt(2)] * 2
    by_group = [a / (s + 1e-4) for a, s in zip(centred, deviations, strict=True)]
    assert torch.allclose(advantages("grpo", experience, num_generations=2), spread(by_group), atol=1e-9)
    mean = (0.9 + 0.2 - 1.0 + 0.6) / 4
    squares = sum((one - mean) ** 2 for one in (0.9, 0.2, -1.0, 0.6))
    by_batch = [a / (math.sqrt(squares / 3) + 1e-4) for a in centred]
    found = advantages("grpo", experience, num_generations=2, scale_rewards="batch")
    assert torch.allclose(found, spread(by_batch), atol=1e-9)
    plain = advantages("grpo", experience, num_generations=2, scale_rewards="none")
    assert torch.allclose(plain, spread(centred), atol=1e-12)


def test_equal_rewards_of_a_group_give_no_advantages() -> None:
    experience = made([[0.5], [0.5], [0.5], [0.1], [0.2], [0.3]], [1] * 6)
    for algorithm in ("rloo", "grpo"):
        found = advantages(cast(AlgorithmName, algorithm), experience, num_generations=3)
        assert torch.isfinite(found).all() and float(found[:3].abs().max()) < 1e-9 < 0.1 < float(found[3:].abs().max())
    assert flat_groups(experience.rewards.sum(1), 3) == 0.5
    assert flat_groups(torch.tensor([1.0, 1.0, 2.0, 2.0]), 2) == 1.0


@pytest.mark.parametrize("algorithm", COMPARES_RESPONSES)
def test_a_constant_added_to_a_prompts_rewards_changes_nothing(algorithm: AlgorithmName) -> None:
    torch.manual_seed(0)
    rewards = torch.randn(12, 1, dtype=torch.float64)
    moved = rewards + torch.tensor([3.0, -7.0, 0.5], dtype=torch.float64).repeat_interleave(4)[:, None]
    one = advantages(algorithm, made(rewards.tolist(), [1] * 12), num_generations=4)
    two = advantages(algorithm, made(moved.tolist(), [1] * 12), num_generations=4)
    assert torch.allclose(one, two, atol=1e-9) and torch.allclose(one.view(3, 4).sum(1), torch.zeros(3).double())


def test_rloo_is_grpo_without_scale_times_k_over_k_minus_1() -> None:
    torch.manual_seed(1)
    experience = made(torch.randn(12, 1, dtype=torch.float64).tolist(), [1] * 12)
    one = advantages("rloo", experience, num_generations=4)
    two = advantages("grpo", experience, num_generations=4, scale_rewards="none")
    assert torch.allclose(one, two * 4 / 3, atol=1e-12)


# ---------------------------------------------------------------- in running loops


def sums(batch: Experience, coefficient: float) -> list[float]:
    """Score less coefficient x KL of each response, token by token."""
    return [
        float(batch.scores[i])
        - coefficient
        * sum(float(batch.logprobs[i, t] - batch.ref_logprobs[i, t]) for t in range(int(batch.lengths[i])))
        for i in range(BATCH)
    ]


def test_reinforce_has_the_mean_of_all_earlier_updates_as_its_baseline(tmp_path: Path) -> None:
    loop = trained(tmp_path, 3, algorithm="reinforce", learning_rate=4e-2, **PLAIN)
    earlier: list[float] = []
    for batch, entry in zip(loop.batches, loop.history, strict=True):
        totals = sums(batch, 0.5)
        baseline = sum(earlier) / len(earlier) if earlier else 0.0
        assert entry["baseline"] == pytest.approx(baseline, abs=1e-9)
        loss = 0.0
        for i, total in enumerate(totals):
            for t in range(int(batch.lengths[i])):
                assert float(batch.advantages[i, t]) == pytest.approx(total - baseline, abs=1e-9)
                loss -= (total - baseline) * float(batch.logprobs[i, t])
        assert entry["policy_loss"] == pytest.approx(loss / BATCH, abs=1e-8)  # sum over tokens, mean over responses
        earlier.append(sum(totals) / BATCH)
    assert len({round(one, 6) for one in earlier}) == 3


def test_rloo_compares_the_responses_to_one_prompt(tmp_path: Path) -> None:
    loop = trained(tmp_path, 2, algorithm="rloo", num_generations=4, learning_rate=4e-2, **PLAIN)
    for batch in loop.batches:
        totals = sums(batch, 0.5)
        for i, total in enumerate(totals):
            group = [j for j in range(BATCH) if j // 4 == i // 4 and j != i]
            assert {batch.prompt_indices[j] for j in group} == {batch.prompt_indices[i]}
            expected = total - sum(totals[j] for j in group) / 3
            assert float(batch.advantages[i, 0]) == pytest.approx(expected, abs=1e-9)
    assert abs(sums(loop.batches[1], 0.5)[0] - sums(loop.batches[1], 0.0)[0]) > 1e-6  # the KL counts


def test_grpo_keeps_the_kl_out_of_the_rewards(tmp_path: Path) -> None:
    loop = trained(tmp_path, 2, algorithm="grpo", num_generations=4, learning_rate=4e-2, **PLAIN)
    batch = loop.batches[1]
    assert torch.allclose(batch.rewards.sum(1), batch.scores) and float(batch.kl.abs().max()) > 1e-4
    assert loop.history[1]["rlhf_reward"] == pytest.approx(float(batch.scores.mean() - 0.5 * batch.kl.sum(1).mean()))


@pytest.mark.parametrize("algorithm", WITHOUT_CRITIC)
def test_metrics_of_a_critic_are_not_there_and_those_of_the_algorithm_are(algorithm: str, tmp_path: Path) -> None:
    loop = trained(tmp_path, 1, algorithm=algorithm, kind=None, num_generations=2, num_mini_batches=1)
    names = loop.history[0].keys()
    assert not {"value_loss", "value_mean", "value_clip_fraction", "explained_variance"} & names
    assert ("baseline" in names, "flat_groups" in names) == (algorithm == "reinforce", algorithm != "reinforce")
    assert ("clip_fraction" in names) is (algorithm == "grpo")
    assert all(name.startswith("policy.") for name in loop.roles.state())


@pytest.mark.parametrize(
    "algorithm", ["reinforce", *(pytest.param(one, marks=pytest.mark.ci) for one in ("rloo", "grpo"))]
)
def test_it_learns_and_goes_on_exactly_after_a_stop(algorithm: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "kind": None, "algorithm": algorithm, "num_generations": 4, "lr_scheduler_type": "constant", "kl_coef": 0.01,
        "checkpoint_steps": 10, "learning_rate": 2e-2 if algorithm == "grpo" else 4e-2,
    }  # fmt: skip
    loop, again = learns_and_goes_on_after_a_stop(tmp_path, **options)
    assert again.batches[0].earlier_reward == loop.batches[20].earlier_reward != 0.0


def test_the_two_tables_agree_about_critics() -> None:
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.needs_critic is (name in USED_BY["critic"]), name
        assert algorithm.kl_in_reward is (name in USED_BY["kl_estimator"]), name
    assert set(COMPARED) == set(WITHOUT_CRITIC)
