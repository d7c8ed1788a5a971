"""A weighted sum of scorers, with rows that some of them skip."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from small_episodes import episodes
from thread_processes import group, together

from rlhfctl.models.processes import Processes
from rlhfctl.rewards.build import Resources, build_reward
from rlhfctl.rewards.episode import extras_of, logged_means, part_means, parts_of
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.weighted import WeightedReward


def test_a_weighted_sum_leaves_out_the_parts_that_pass_a_row_over(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "parts.py").write_text(
        "def first(prompts, completions): return [1.0, None, None]\n"
        "def second(prompts, completions): return [10.0, 20.0, None]\n"
    )
    one, two = (FunctionReward(f"parts:{name}", tmp_path) for name in ("first", "second"))
    weighted = WeightedReward({"first": (one, 2.0), "second": (two, 0.5)}, said.append)
    assert weighted(episodes("a", "b", "c")) == [7.0, 10.0, 0.0]
    assert parts_of(weighted) == {"first": [1.0, None, None], "second": [10.0, 20.0, None]}
    assert part_means(weighted.parts) == {"reward/first": 1.0, "reward/second": 15.0}
    assert len(said) == 1


def test_async_functions_are_asked_at_once_on_one_event_loop(tmp_path: Path) -> None:
    (tmp_path / "meeting.py").write_text(
        "import asyncio\n"
        "arrived, kept = [], {}\n"
        "async def meet(name, prompts):\n"
        "    loop = kept.setdefault('loop', asyncio.get_running_loop())\n"
        "    assert loop is asyncio.get_running_loop()\n"  # what a function keeps open stays usable
        "    arrived.append(name)\n"
        "    async with asyncio.timeout(5):\n"
        "        while len(arrived) % 2:\n"  # it waits for the other: one after the other they would time out
        "            await asyncio.sleep(0.01)\n"
        "    return [1.0] * len(prompts)\n"
        "async def first(prompts, completions): return await meet('first', prompts)\n"
        "async def second(prompts, completions): return await meet('second', prompts)\n"
        "def third(prompts, completions): return [None] * len(prompts)\n"
    )
    scorers = {name: (FunctionReward(f"meeting:{name}", tmp_path), 1.0) for name in ("first", "third", "second")}
    weighted = WeightedReward(scorers)
    for _ in range(2):
        assert weighted(episodes("a", "b")) == [2.0, 2.0]
    assert list(weighted.parts) == ["first", "third", "second"]


def test_what_functions_log_is_joined(tmp_path: Path) -> None:
    (tmp_path / "logging_parts.py").write_text(
        "def first(prompts, completions, log_metric, log_extra):\n"
        "    log_metric('shared', 1); log_extra('kind', completions); return [0] * len(prompts)\n"
        "def second(prompts, completions, log_metric):\n"
        "    log_metric('shared', 3); log_metric('own', 0.5); return [0] * len(prompts)\n"
    )
    weighted = WeightedReward(
        {name: (FunctionReward(f"logging_parts:{name}", tmp_path), 1.0) for name in ("first", "second")}
    )
    weighted(episodes("a", "b"))
    assert logged_means(weighted) == {"logged/shared": 2.0, "logged/own": 0.5}
    assert extras_of(weighted) == {"kind": ["a", "b"]}


def test_with_several_processes_the_first_asks_and_all_hold_the_same(tmp_path: Path) -> None:
    (tmp_path / "shared_parts.py").write_text(
        "calls = []\n"
        "def plain(prompts, completions, log_metric, log_extra):\n"
        "    calls.append(len(prompts)); log_metric('size', len(prompts)); log_extra('text', completions)\n"
        "    return [1.0] * len(prompts)\n"
        "async def waiting(prompts, completions):\n"
        "    calls.append(len(prompts)); return [None, 2.0, 3.0]\n"
    )

    def build(processes: Processes) -> WeightedReward:
        resources = Resources(tmp_path, processes=processes)
        weights = {"shared_parts:plain": 1.0, "shared_parts:waiting": 1.0, "distinct1": 10.0}
        reward = build_reward(weights, resources)
        assert isinstance(reward, WeightedReward)
        return reward

    rewards = [build(processes) for processes in group(2)]
    batch = episodes("a a", "a b", "a")
    scores = together([partial(reward, batch) for reward in rewards])
    assert scores == [[6.0, 13.0, 14.0]] * 2
    assert sys.modules["shared_parts"].calls == [3, 3]  # each function once, with all episodes
    for reward in rewards:
        assert reward.parts["shared_parts:waiting"] == [None, 2.0, 3.0]
        assert logged_means(reward) == {"logged/size": 3.0} and extras_of(reward) == {"text": ["a a", "a b", "a"]}
