"""CodeRL's returns by hand, its baseline in a running loop, and a policy that learns from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_loops import BATCH, LENGTH, PROMPTS, A, Seen, column, loop_for

from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.unit_tests import UnitTests
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.unit_tests import UnitTestsReward
from rlhfctl.sandbox.pool import OUTCOMES, Result
from rlhfctl.training.rl import coderl
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.outcome_critic import OutcomeCritic


class CountsLetters(UnitTestsReward):
    """Outcomes without a sandbox: no a is no program, one raises an error, two fail, more pass."""

    def __init__(self) -> None:
        self.section, self.outcomes = UnitTests(), []

    def results(self, episodes: Sequence[Episode]) -> list[Result]:
        return [Result(OUTCOMES[min(list(one.response_ids).count(A), 3)]) for one in episodes]


def coderl_loop(work: Path, updates: int = 1, **options: Any) -> Seen:
    """A loop that trains by CodeRL's returns, with an outcome critic of random weights."""
    loop = loop_for(work, updates, kind=None, lora=False, score=CountsLetters(), algorithm="coderl", **options)
    critic = OutcomeCritic.on(loop.roles.reference.model, seed=3)
    with torch.no_grad():
        critic.model.score.weight *= 20  # beliefs far from 1/4
    loop.collector = dataclasses.replace(loop.collector, outcome_critic=critic)
    return loop


def made(**tensors: Any) -> Experience:
    given = {name: torch.tensor(value) for name, value in tensors.items()}
    return cast(Experience, SimpleNamespace(**given, penalty=lambda section: section.kl_coef))


def test_returns_by_hand() -> None:
    """(r - r_greedy) q, less 0.5 x the KL from each token on; 0 beyond the response."""
    experience = made(
        scores=[1.0, -0.6],
        baselines=[-0.3, -0.6],
        beliefs=[[0.5, 0.25, 1.0], [0.5, 0.5, 0.0]],
        kl=[[0.1, 0.2, 0.3], [0.4, -0.2, 0.0]],
        response_mask=[[True, True, True], [True, True, False]],
    )
    advantages, returns = coderl.outcome_weighted(experience, Ppo(kl_coef=0.5))
    expected = [[1.3 * 0.5 - 0.3, 1.3 * 0.25 - 0.25, 1.3 - 0.15], [0.0 - 0.1, 0.0 + 0.1, 0.0]]
    assert returns is None
    assert torch.allclose(advantages, torch.tensor(expected), atol=1e-6)


def test_belief_is_the_probability_of_what_happened() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]).log_softmax(-1) + 7.0
    chance = float(torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 3))
    assert coderl.beliefs(logits, torch.tensor([1, 3])).tolist() == pytest.approx([0.25, chance])


def test_pooling_takes_the_maximum_over_each_programs_own_tokens() -> None:
    states = torch.tensor([[1.0, -5.0], [3.0, -7.0], [9.0, 9.0]])
    assert coderl.max_over_tokens(states, torch.tensor([0, 0, 1]), 2).tolist() == [[3.0, -5.0], [9.0, 9.0]]


def test_the_baseline_is_the_score_of_the_policys_greedy_program(tmp_path: Path) -> None:
    """Sampled here one prompt at a time, by the argmax of a whole forward at each token."""
    loop = coderl_loop(tmp_path)
    greedy: dict[int, float] = {}
    model, tester = loop.roles.policy.model, CountsLetters()
    for index, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(LENGTH):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 0:
                break
        (greedy[index],) = tester([Episode(prompt, ids[len(prompt) :], "", "", {})])
    loop.train()
    (batch,) = loop.batches
    assert batch.baselines.tolist() == pytest.approx([greedy[index] for index in batch.prompt_indices])
    assert column(loop, "greedy_score") == pytest.approx([sum(batch.baselines.tolist()) / BATCH])
    assert len(set(greedy.values())) > 1


def test_beliefs_are_those_after_each_token_of_the_outcome_that_followed(tmp_path: Path) -> None:
    loop = coderl_loop(tmp_path, kl_coef=0.0)
    loop.train()
    (batch,), critic = loop.batches, loop.collector.outcome_critic
    assert critic is not None
    scores = {"compile_error": -1.0, "runtime_error": -0.6, "failed": -0.3, "passed": 1.0}
    for row, (prompt, response) in enumerate(zip(batch.prompts, batch.responses, strict=True)):
        ids = torch.tensor([[*prompt, *response.ids]])
        with torch.no_grad():
            states = critic.model.base_model(ids).last_hidden_state[0, len(prompt) :]
            chances = torch.softmax(critic.model.score(states), -1)
        outcome = batch.outcomes[row]
        expected = chances[:, OUTCOMES.index(outcome)]
        count = len(response.ids)
        assert torch.allclose(batch.beliefs[row, :count], expected, atol=1e-5)
        gain = scores[outcome] - float(batch.baselines[row])
        assert torch.allclose(batch.advantages[row, :count], gain * expected, atol=1e-5)
        assert not batch.beliefs[row, count:].any()
    assert batch.beliefs[batch.response_mask].std() > 0.05


def test_a_policy_learns_from_these_returns(tmp_path: Path) -> None:
    loop = coderl_loop(tmp_path, 30, kl_coef=0.0, num_ppo_epochs=1, learning_rate=2e-2)
    loop.train()
    scores = column(loop, "score")
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.5
