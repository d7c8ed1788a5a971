"""Collect experience: prompts, sampling, scores, KL, rewards and advantages against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import (
    BATCH,
    KINDS,
    LENGTH,
    PROMPTS,
    A,
    B,
    Seen,
    column,
    gap,
    loop_for,
    make_roles,
    start,
    trained,
    trained_on_rounded_samples,
)

from rlhfctl.events import Event, Note
from rlhfctl.generation import generator, local
from rlhfctl.training.rl import collect as collect_module
from rlhfctl.training.rl.experience import Experience


def test_kl_coef_is_the_weight_of_the_kl_in_the_reward(tmp_path: Path) -> None:
    free = trained(tmp_path / "free", 6, kl_coef=0.0)
    bound = trained(tmp_path / "bound", 6, kl_coef=1.0)
    for loop, weight in ((free, 0.0), (bound, 1.0)):
        for entry in loop.history:
            assert entry["non_score_reward"] == pytest.approx(-weight * entry["kl"])
            assert entry["rlhf_reward"] == pytest.approx(entry["score"] - weight * entry["kl"])
    assert abs(bound.history[-1]["kl"]) < 0.5 * free.history[-1]["kl"]
    batch = bound.batches[-1]
    without_score = batch.rewards.sum(1) - batch.scores
    assert torch.allclose(without_score, -batch.kl.sum(1), atol=1e-5) and without_score.abs().max() > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_reported_kl_is_that_of_the_estimator(estimator: str, tmp_path: Path) -> None:
    by_hand: dict[str, Callable[[float], float]] = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }
    loop = trained(tmp_path, 4, kl_estimator=estimator, dtype=torch.float64)
    batch = loop.batches[-1]
    due = 0.0
    for row, length in enumerate(batch.lengths.tolist()):
        for t in range(length):
            due += by_hand[estimator](float(batch.logprobs[row, t] - batch.ref_logprobs[row, t]))
    assert loop.history[-1]["kl"] == pytest.approx(due / BATCH, abs=1e-12)
    others = [
        sum(f(float(x)) for x in (batch.logprobs - batch.ref_logprobs)[batch.response_mask]) for f in by_hand.values()
    ]
    assert min(abs(x - y) for x, y in itertools.combinations(others, 2)) > 1e-3  # they could be told apart


def test_whitened_rewards_have_unit_variance_and_keep_their_mean(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain").batches[0]
    white = trained(tmp_path / "white", whiten_rewards=True).batches[0]
    before, after = plain.rewards[plain.value_mask], white.rewards[white.value_mask]
    assert float(after.var()) == pytest.approx(1.0, abs=1e-4) and float(before.var()) < 0.2
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-6) and float(before.mean()) > 1e-3


def test_whitened_advantages_have_mean_zero_and_unit_variance(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", whiten_advantages=False).batches[0]
    white = trained(tmp_path / "white").batches[0]
    assert torch.allclose(
        plain.advantages, (plain.returns - plain.values).masked_fill(~plain.response_mask, 0.0), atol=1e-6
    )
    inside = white.advantages[white.response_mask]
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-6) and float(inside.var()) == pytest.approx(1.0, abs=1e-4)
    assert float(plain.advantages[plain.response_mask].var()) < 0.5
    assert torch.equal(plain.returns, white.returns)


def test_a_missing_end_costs_the_penalty_or_sets_the_score(tmp_path: Path) -> None:
    for options, due in (
        ({"missing_eos_penalty": 1.5}, lambda raw: raw - 1.5),
        ({"missing_eos_score": -7.0}, lambda raw: torch.full_like(raw, -7.0)),
        ({}, lambda raw: raw),
    ):
        loop = trained(tmp_path / "-".join(options), **options)  # type: ignore[arg-type]
        batch = loop.batches[0]
        assert 0 < int(batch.ended.sum()) < BATCH
        assert torch.equal(batch.scores[batch.ended], batch.raw_scores[batch.ended])
        assert torch.allclose(batch.scores[~batch.ended], due(batch.raw_scores[~batch.ended]))
        assert loop.history[0]["score"] == pytest.approx(float(batch.scores.mean()))
        assert loop.history[0]["raw_score"] == pytest.approx(sum(share_of_a_of(batch)) / BATCH)


def share_of_a_of(batch: Experience) -> list[float]:
    return [response.ids.count(A) / LENGTH for response in batch.responses]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.8, 0.95), (1.0, 0.3), (0.7, 0.0)])
def test_advantages_are_discounted_by_gamma_and_lambda(gamma: float, lam: float, tmp_path: Path) -> None:
    loop = trained(tmp_path, 4, gamma=gamma, lam=lam, whiten_advantages=False, dtype=torch.float64, kl_coef=0.5)
    batch = loop.batches[-1]
    assert batch.values.abs().max() > 1e-3  # the critic has moved
    for row in range(BATCH):
        states = int(batch.value_mask[row].sum())
        r, v = batch.rewards[row].tolist(), [*batch.values[row, :states].tolist(), 0.0]
        for t in range(states):
            due = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, states))
            assert float(batch.returns[row, t]) == pytest.approx(due + v[t], abs=1e-12)
            if t < len(batch.responses[row].ids):
                assert float(batch.advantages[row, t]) == pytest.approx(due, abs=1e-12)


def test_num_generations_repeats_each_prompt(tmp_path: Path) -> None:
    four = trained(tmp_path / "four", 2, num_generations=4)
    for batch in four.batches:
        assert batch.prompt_indices == [batch.prompt_indices[0]] * 4 + [batch.prompt_indices[4]] * 4
        assert batch.prompt_indices[0] != batch.prompt_indices[4]
        assert len({tuple(response.ids) for response in batch.responses[:4]}) > 1
    once = trained(tmp_path / "once", 5)
    indices = [index for batch in once.batches for index in batch.prompt_indices]
    assert all(len(set(indices[i : i + len(PROMPTS)])) == len(PROMPTS) for i in range(0, len(indices), len(PROMPTS)))
    assert indices[: len(PROMPTS)] != indices[len(PROMPTS) : 2 * len(PROMPTS)]  # each pass has an order of its own


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}])
def test_what_leaves_one_token_to_draw_gives_the_greedy_response(options: dict[str, Any], tmp_path: Path) -> None:
    def responses(**changes: Any) -> tuple[Experience, Seen]:
        loop = trained(tmp_path / str(changes), **changes)
        return loop.batches[0], loop

    batch, loop = responses(**options)
    tokenizer, roles = make_roles()
    greedy = local.sample(
        roles.policy, batch.prompts, tokenizer, generator.Sampling(LENGTH, None, BATCH, 5, stop_ids=(0,))
    )
    assert [r.ids for r in batch.responses] == [r.ids for r in greedy]
    assert [r.ids for r in responses()[0].responses] != [r.ids for r in greedy]
    if "temperature" not in options:  # drawn from one token, so KL to the whole distribution is -log of its share
        assert torch.allclose(batch.kl, -batch.ref_logprobs.masked_fill(~batch.response_mask, 0.0), atol=1e-5)
        assert loop.history[0]["kl"] > 0.1


def test_responses_end_where_the_recipe_says(tmp_path: Path) -> None:
    def drawn(name: str, **options: Any) -> list[generator.Response]:
        batches = trained(tmp_path / name, 4, learning_rate=1e-9, **options).batches
        return [response for batch in batches for response in batch.responses]

    never = drawn("never", stop_token=None)
    assert all(len(r.ids) == LENGTH and not r.ended for r in never) and any(0 in r.ids for r in never)
    at_b = drawn("b", stop_token="b")
    assert {r.ended for r in at_b} == {True, False}
    assert all(r.ended == (r.ids[-1] == B) and B not in r.ids[:-1] for r in at_b)
    pairs = [a + b for a, b in itertools.product("abcdefghij", repeat=2) if a != "a"]
    texts = make_roles()[0]
    at_pair = drawn("pair", stop_token=None, stop_strings=pairs)
    for response in at_pair:
        said = texts.decode(response.ids)
        assert response.ended == any(pair in said for pair in pairs)
        assert not any(pair in texts.decode(response.ids[:-1]) for pair in pairs)
    assert any(len(r.ids) < LENGTH for r in at_pair)


def test_sampling_that_rounds_differently_is_a_note_and_its_numbers_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "AGREEMENT", 0.0)
    events: list[Event] = []
    loop = loop_for(tmp_path, 2, run={"emit": events.append, "say": pytest.fail})
    loop.train()
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len(notes) == 1 and "round differently" in notes[0] and loop.recomputes
    assert all(batch.ref_logprobs.shape == batch.logprobs.shape for batch in loop.batches)
    first = loop.batches[0]  # before any step policy and reference are one model, and now one computation
    assert torch.equal(
        first.logprobs.masked_fill(~first.response_mask, 0), first.ref_logprobs.masked_fill(~first.response_mask, 0)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_the_sampled_logprobs_are_those_of_the_update_and_close_to_float32(kind: str, tmp_path: Path) -> None:
    gaps: list[float] = []

    def compare(loop: Seen, batch: Experience) -> None:
        policy, section = loop.roles.policy, loop.section
        with torch.no_grad():
            exact = collect_module.token_logprobs(batch, policy, section)
            with loop.accelerator.autocast():
                assert torch.equal(collect_module.token_logprobs(batch, policy, section), batch.logprobs)
        gaps.append(float((exact - batch.logprobs).abs().max()))

    loop = trained(tmp_path, 3, kind=kind, change=compare, bf16=True, num_ppo_epochs=1)
    assert loop.recomputes and len(gaps) == 3
    assert all(0 < number < 0.1 for number in gaps)
    assert column(loop, "ratio") == pytest.approx([1.0] * 3, abs=1e-2)  # the first step is taken where ratio is 1
    assert all(value.dtype == torch.float32 for value in loop.roles.state().values())
    assert gap(start(kind=kind), loop.roles.state()) > 1e-3


def test_importance_weights_are_the_ratio_of_learning_to_sampling(tmp_path: Path) -> None:
    """Without a cap in the recipe there are none; with a cap of 1 no weight is above it."""
    batches: dict[str, Experience] = {}
    for name, cap in (("off", None), ("wide", 50.0), ("tight", 1.0)):
        loop = trained_on_rounded_samples(tmp_path / name, num_ppo_epochs=1, importance_cap=cap)
        batches[name] = loop.batches[0]
        assert ("importance" in loop.history[0]) is (cap is not None)
    assert batches["off"].importance.numel() == 0
    wide, mask = batches["wide"], batches["wide"].response_mask
    sampled = wide.table([response.logprobs for response in wide.responses], torch.float32)
    torch.testing.assert_close(wide.importance[mask], (wide.logprobs - sampled)[mask].exp())
    assert wide.rollout_gap == pytest.approx(0.05, abs=0.02)
    assert float(wide.importance[mask].log().abs().max()) == pytest.approx(wide.rollout_gap, rel=1e-3)
    tight = batches["tight"].importance
    torch.testing.assert_close(tight, wide.importance.clamp(max=1.0))
    assert loop.history[0]["importance"] == pytest.approx(float(tight[mask].mean()))
    assert 0.2 < loop.history[0]["importance_capped"] < 0.8
    assert loop.history[0]["importance_capped"] == pytest.approx(float((tight[mask] == 1).double().mean()))
