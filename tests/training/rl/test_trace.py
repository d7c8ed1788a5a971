"""Write traces: as often and as wide as asked, and their numbers add up to the logged metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import (
    BATCH,
    KINDS,
    LENGTH,
    A,
    trained,
)


def test_traces_are_written_as_often_and_as_wide_as_asked(tmp_path: Path) -> None:
    trained(tmp_path, 5, trace_every=2, trace_episodes=3, num_ppo_epochs=1)
    files = sorted((tmp_path / "traces").iterdir())
    assert [file.name for file in files] == ["update-000002.jsonl", "update-000004.jsonl"]
    assert all(len(file.read_text().splitlines()) == 3 for file in files)
    trained(tmp_path / "wide", 1, trace_every=1, trace_episodes=99, num_ppo_epochs=1)
    assert len((tmp_path / "wide" / "traces" / "update-000001.jsonl").read_text().splitlines()) == BATCH
    trained(tmp_path / "none", 2, trace_every=0, num_ppo_epochs=1)
    assert not (tmp_path / "none" / "traces").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_adds_up_to_the_logged_metrics(kind: str, tmp_path: Path) -> None:
    """From the JSON alone: KL, rewards, deltas, advantages, returns, ratios, both losses, clip fractions."""
    gamma, lam, kl_coef, clip, clip_value = 0.9, 0.8, 0.3, 0.05, 0.02
    loop = trained(
        tmp_path,
        3,
        kind=kind,
        dtype=torch.float64,
        gamma=gamma,
        lam=lam,
        kl_coef=kl_coef,
        cliprange=clip,
        cliprange_value=clip_value,
        num_ppo_epochs=3,
        whiten_advantages=False,
        missing_eos_penalty=1.0,
        trace_every=1,
        trace_episodes=BATCH,
        vf_coef=0.5,
    )
    for number, logged in enumerate(loop.history, 1):
        lines = (tmp_path / "traces" / f"update-{number:06d}.jsonl").read_text().splitlines()
        episodes = [json.loads(line) for line in lines]
        assert len(episodes) == BATCH
        for one in episodes:
            check_episode(one, gamma, lam, kl_coef)
        tokens = sum(len(one["ids"]) for one in episodes)
        states = sum(len(one["values"]) for one in episodes)
        policy, value, clipped, value_clipped = [], [], 0, 0
        for epoch in range(3):
            for one in episodes:
                now = one["epochs"][epoch]
                for t, ratio in enumerate(now["ratio"]):
                    assert ratio == pytest.approx(math.exp(now["logprobs"][t] - one["policy_logprobs"][t]), abs=1e-12)
                    advantage = one["advantages"][t]
                    cut = min(max(ratio, 1 - clip), 1 + clip) * advantage
                    policy.append(-min(ratio * advantage, cut))
                    assert now["clipped"][t] == (cut < ratio * advantage)
                    clipped += now["clipped"][t]
                for new, old, due in zip(now["values"], one["values"], one["returns"], strict=True):
                    near = min(max(new, old - clip_value), old + clip_value)
                    value.append(max((new - due) ** 2, (near - due) ** 2) / 2)
                    value_clipped += (near - due) ** 2 > (new - due) ** 2
        assert sum(policy) / (3 * tokens) == pytest.approx(logged["policy_loss"], abs=1e-9)
        assert sum(value) / (3 * states) == pytest.approx(logged["value_loss"], abs=1e-9)
        assert clipped / (3 * tokens) == pytest.approx(logged["clip_fraction"], abs=1e-6)
        assert value_clipped / (3 * states) == pytest.approx(logged["value_clip_fraction"], abs=1e-6)
        assert sum(sum(one["kl"]) for one in episodes) / BATCH == pytest.approx(logged["kl"], abs=1e-9)
        assert sum(one["score"] for one in episodes) / BATCH == pytest.approx(logged["score"], abs=1e-9)
        assert sum(len(one["ids"]) for one in episodes) / BATCH == logged["length"]
    assert logged["clip_fraction"] > 0 and logged["value_clip_fraction"] > 0 and abs(logged["kl"]) > 1e-3


def check_episode(one: dict[str, Any], gamma: float, lam: float, kl_coef: float) -> None:
    """One line of a trace against itself."""
    tokens, states = len(one["ids"]), len(one["values"])
    assert states == min(tokens + 1, LENGTH)
    assert len(one["tokens"]) == len(one["kl"]) == tokens and "".join(one["tokens"]) == one["response"]
    raw = one["ids"].count(A) / LENGTH
    assert one["raw_score"] == pytest.approx(raw) and one["score"] == pytest.approx(raw - (not one["ended"]))
    rewards = [-kl_coef * kl for kl in one["kl"]] + [0.0] * (states - tokens)
    rewards[-1] += one["score"]
    assert one["rewards"] == pytest.approx(rewards, abs=1e-12)
    differences = [a - b for a, b in zip(one["policy_logprobs"], one["reference_logprobs"], strict=True)]
    assert one["kl"] == pytest.approx(differences, abs=1e-12)
    following = [*one["values"][1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(one["rewards"], following, one["values"], strict=True)]
    assert one["deltas"] == pytest.approx(deltas, abs=1e-12)
    running, advantages = 0.0, []
    for delta in reversed(deltas):
        running = delta + gamma * lam * running
        advantages.append(running)
    advantages.reverse()
    assert one["advantages"] == pytest.approx(advantages[:tokens], abs=1e-12)
    assert one["returns"] == pytest.approx([a + v for a, v in zip(advantages, one["values"], strict=True)], abs=1e-12)
