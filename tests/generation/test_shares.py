"""Sampling in several processes: the same draws as in one, each made once."""

from __future__ import annotations

from typing import Any

from small_loops import PROMPTS, make_roles
from thread_processes import group, together

from rlhfctl.generation.generator import Response, Sampling
from rlhfctl.generation.local import sample
from rlhfctl.generation.shares import in_shares
from rlhfctl.models.processes import ALONE

SAMPLING = Sampling(6, 1.0, 4, seed=3)


def test_one_process_samples_with_the_generator_itself() -> None:
    assert in_shares(sample, ALONE) is sample


def test_three_processes_draw_what_one_draws_and_each_prompt_once() -> None:
    tokenizer, roles = make_roles()
    episodes = [20 + number for number in range(len(PROMPTS))]
    expected = sample(roles.policy, PROMPTS, tokenizer, SAMPLING, episodes=episodes)
    asked: list[list[int]] = []

    def counted(policy: Any, prompts: Any, *rest: Any, **named: Any) -> list[Response]:
        asked.append(list(named["episodes"]))
        return sample(policy, prompts, *rest, **named)

    def work(own: Any, policy: Any) -> list[Response]:
        return in_shares(counted, own)(policy, PROMPTS, tokenizer, SAMPLING, episodes=episodes)

    policies = [make_roles()[1].policy for _ in range(3)]
    made = together([lambda own=own, policy=policy: work(own, policy) for own, policy in zip(group(3), policies)])  # type: ignore[misc] # noqa: B905
    for responses in made:
        assert [one.ids for one in responses] == [one.ids for one in expected]
    assert sorted(number for numbers in asked for number in numbers) == episodes
