"""Sampling that depends on the prompts and the seed alone, and the exact KL by brute force.

A draw is one uniform number for each (seed, stream, episode, position) sent through the inverse of the cumulative
distribution; what is recorded beside the tokens is held against full forwards without a cache.
"""

from __future__ import annotations

import math
import random

import numpy
import pytest
import torch
from small_policies import PROMPTS, sampled, tiny
from small_roles import COMMON_ARCHITECTURES, base

from rlhfctl.generation import local
from rlhfctl.generation.generator import Response, Sampling, truncated
from rlhfctl.models import special_tokens
from rlhfctl.models.language_model import LanguageModel


def test_responses_end_once() -> None:
    tokenizer, model = tiny()
    responses = [r for seed in range(20) for r in sampled(model, tokenizer, seed=seed)]
    assert {response.ended for response in responses} == {True, False}
    for response in responses:
        assert tokenizer.eos_token_id not in response.ids[:-1]
        assert tokenizer.pad_token_id not in response.ids
        assert response.ended is (response.ids[-1] == tokenizer.eos_token_id)
        assert len(response.ids) == 8 or response.ended


def test_the_seed_decides_and_nothing_else_is_touched() -> None:
    tokenizer, model = tiny()
    model.train()
    model.lm_head.eval()
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    first = sampled(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and numpy.random.get_state()[1].tolist() == states[2]
    assert model.training and not model.lm_head.training and torch.is_grad_enabled()
    torch.manual_seed(4)
    assert sampled(model, tokenizer) == first
    assert sampled(model, tokenizer, seed=6) != first
    assert len({tuple(r.ids) for r in (first[0], first[3], sampled(model, tokenizer, seed=7)[0])}) > 1


def test_responses_are_in_the_order_of_the_prompts() -> None:
    """Batches are of like lengths; greedy, so that each response can be told by its prompt."""
    tokenizer, model = tiny()
    seen: list[int] = []
    sampling = Sampling(max_new_tokens=6, temperature=None, batch_size=4, seed=0)
    together = local.sample(model, PROMPTS, tokenizer, sampling, seen.append)
    assert together == [local.sample(model, [prompt], tokenizer, sampling)[0] for prompt in PROMPTS]
    assert seen == [4, 6]
    assert len({tuple(response.ids) for response in together}) > 1


def test_greedy_is_the_argmax_loop() -> None:
    tokenizer, model = tiny()
    model.generation_config.update(repetition_penalty=1.5)  # a base's sampling defaults
    special_tokens.set_token_ids(model, tokenizer)
    for prompt, response in zip(PROMPTS, sampled(model, tokenizer, temperature=None, max_new_tokens=7), strict=True):
        ids: list[int] = []
        with torch.no_grad():
            while len(ids) < 7 and (not ids or ids[-1] != tokenizer.eos_token_id):
                ids.append(int(model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].argmax()))
        assert response.ids == ids


def test_temperature_is_the_distributions() -> None:
    """First tokens at temperature 3: shares within 4 standard errors of softmax(logits / 3)."""
    tokenizer, model = tiny()
    n = 4000
    sampling = Sampling(max_new_tokens=1, temperature=3.0, batch_size=n, seed=0)
    first = [response.ids[0] for response in local.sample(model, [[2, 3]] * n, tokenizer, sampling)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[2, 3]])).logits[0, -1]
    for token, share in enumerate(torch.softmax(logits / 3.0, -1).tolist()):
        assert first.count(token) / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5 + 1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_with_several_responses_is_read_once(architecture: str) -> None:
    """Its states and its cache are copied; each response draws as if the prompt were its own."""
    tokenizer, model = base(architecture)
    policy = LanguageModel(model, tokenizer.pad_token_id)
    prompts = [prompt for prompt in PROMPTS[:4] for _ in range(3)]
    sampling = Sampling(max_new_tokens=8, temperature=1.0, batch_size=12, seed=5)
    apart = [local.sample(policy, [prompt], tokenizer, sampling, episodes=[i])[0] for i, prompt in enumerate(prompts)]
    tokens: list[int] = []
    embed = model.get_input_embeddings()
    embed.register_forward_pre_hook(lambda _, given: tokens.append(given[0].numel()))
    together = local.sample(policy, prompts, tokenizer, sampling)
    assert [response.ids for response in together] == [response.ids for response in apart]
    for one, other in zip(together, apart, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len({tuple(response.ids) for response in together}) > 6
    reading = max(tokens)  # later steps read a token per row
    assert reading <= 4 * max(map(len, PROMPTS[:4]))


# ---------------------------------------------------------------- noise, and what it becomes


def test_what_an_episode_draws_depends_on_no_other_row() -> None:
    """Any batch size, any order, rows that leave the batch early: the same tokens, while episodes go along."""
    tokenizer, model = tiny()
    prompts, episodes = PROMPTS * 3, list(range(100, 118))
    sampling = {"max_new_tokens": 12, "temperature": 1.5, "seed": 5}

    def drawn(order: list[int], batch_size: int) -> list[Response]:
        rows = local.sample(
            model,
            [prompts[index] for index in order],
            tokenizer,
            Sampling(batch_size=batch_size, **sampling),
            episodes=[episodes[index] for index in order],
        )
        back = dict(zip(order, rows, strict=True))
        return [back[index] for index in sorted(back)]

    straight = list(range(18))
    expected = drawn(straight, 18)
    assert len({len(response.ids) for response in expected}) > 3  # so the batch shrank on its way
    for batch_size in (1, 2, 5, 18):
        for order in (straight, straight[::-1], random.Random(batch_size).sample(straight, 18)):
            given = drawn(order, batch_size)
            assert [(r.ids, r.ended) for r in given] == [(r.ids, r.ended) for r in expected]
            for a, b in zip(given, expected, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    part = [3, 9, 4]
    assert [response.ids for response in drawn(part, 2)] == [expected[index].ids for index in sorted(part)]
    others = local.sample(model, prompts, tokenizer, Sampling(batch_size=18, **sampling))
    assert [response.ids for response in others] != [response.ids for response in expected]
    moved = local.sample(model, prompts, tokenizer, Sampling(batch_size=18, stream=1, **sampling), episodes=episodes)
    assert [response.ids for response in moved] != [response.ids for response in expected]


# ---------------------------------------------------------------- top-k and top-p


@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (0, 0.7), (3, 0.8)])
def test_only_what_is_kept_is_drawn_and_its_probability_recorded(top_k: int, top_p: float) -> None:
    tokenizer, model = tiny()
    seen = 0
    for response, prompt in zip(
        sampled(model, tokenizer, top_k=top_k, top_p=top_p, temperature=2.0), PROMPTS, strict=True
    ):
        assert len(response.kept) == len(response.logprobs) == len(response.ids)
        for t, token in enumerate(response.ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + response.ids[:t]])).logits[0, -1]
            p = torch.softmax(logits / 2.0, -1)
            order = p.argsort(descending=True).tolist()
            order = order[: top_k or None]
            whole, allowed = float(p[order].sum()), []
            for candidate in order:
                allowed.append(candidate)
                if float(p[allowed].sum()) >= top_p * whole:
                    break
            assert token in allowed and len(allowed) < len(p) - 1
            assert response.kept[t] == pytest.approx(math.log(float(p[allowed].sum())), abs=1e-5)
            assert response.logprobs[t] == pytest.approx(math.log(float(p[token])), abs=1e-5)  # of the whole
            seen += 1
    assert seen > 20


def test_the_log_ratio_less_kept_estimates_the_truncated_kl() -> None:
    """E[log p - log p(kept) - log q] = KL(p truncated || q), within 4 standard errors; without `kept` it is not."""
    tokenizer, policy = tiny(1)
    _, reference = tiny(2)
    n, prompt = 6000, [2, 3]
    sampling = Sampling(1, 2.0, n, 0, top_k=3)
    drawn = local.sample(policy, [prompt] * n, tokenizer, sampling)
    with torch.no_grad():
        p, q = (torch.softmax(m(input_ids=torch.tensor([prompt])).logits[0, -1] / 2, -1) for m in (policy, reference))
    cut = truncated(p[None], 3, 1.0)[0]
    cut = cut / cut.sum()
    exact = float(sum(c * (c.log() - r.log()) for c, r in zip(cut, q, strict=True) if c > 0))
    ratios = torch.tensor([r.logprobs[0] - r.kept[0] - math.log(float(q[r.ids[0]])) for r in drawn])
    error = float(ratios.std()) / n**0.5
    assert float(ratios.mean()) == pytest.approx(exact, abs=4 * error)
    kept = -drawn[0].kept[0]
    assert kept > 8 * error  # so that leaving it out would have been seen


# ---------------------------------------------------------------- where a response ends


def test_any_token_may_end_a_response_or_none() -> None:
    tokenizer, model = tiny()
    eos = tokenizer.eos_token_id
    for response in sampled(model, tokenizer, stop_ids=(3, 5), max_new_tokens=12, temperature=2.0):
        assert not {3, 5} & set(response.ids[:-1])
        assert response.ended is (response.ids[-1] in (3, 5))
    unending = sampled(model, tokenizer, stop_ids=(), max_new_tokens=12, temperature=2.0)
    assert all(len(response.ids) == 12 and not response.ended for response in unending)
    assert any(eos in response.ids[:-1] for response in unending)
    last = [response.ids.index(eos) for response in unending if eos in response.ids]
    usual = sampled(model, tokenizer, max_new_tokens=12, temperature=2.0)
    assert [len(r.ids) - 1 for r in usual if r.ended] == last  # the same draws, cut at their end


def test_a_text_may_end_a_response() -> None:
    tokenizer, model = tiny()
    wanted = dict.fromkeys(("ab", "cc"), 0)
    free = sampled(model, tokenizer, stop_ids=(), max_new_tokens=30, temperature=3.0)
    cut = sampled(
        model, tokenizer, stop_ids=(), stop_strings=tuple(wanted), max_new_tokens=30, temperature=3.0, batch_size=2
    )
    for long, response in zip(free, cut, strict=True):
        text = tokenizer.decode(long.ids)
        first = next((n for n in range(1, 31) if any(s in tokenizer.decode(long.ids[:n]) for s in wanted)), None)
        assert response.ids == long.ids[:first] and response.ended is (first is not None), text
        for stop in wanted:
            wanted[stop] += tokenizer.decode(response.ids).endswith(stop)
    assert all(wanted.values()), wanted


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2", "mistral"])
def test_recorded_numbers_are_those_of_full_forwards(architecture: str) -> None:
    tokenizer, model = tiny(architecture=architecture)
    policy = LanguageModel(model, tokenizer.pad_token_id)
    head = torch.linspace(-1, 1, 16)
    longest, ends = 8, set()
    sampling = Sampling(longest, 1.5, 3, 5)
    drawn = local.sample(policy, PROMPTS * 2, tokenizer, sampling, value_head=lambda states: states @ head)
    without = local.sample(policy, PROMPTS * 2, tokenizer, sampling)
    assert [response.ids for response in drawn] == [response.ids for response in without]
    assert all(response.values == [] for response in without)
    for prompt, response in zip(PROMPTS * 2, drawn, strict=True):
        ids = torch.tensor([prompt + response.ids])
        with torch.no_grad():
            hidden = policy.trunk(input_ids=ids).last_hidden_state[0, len(prompt) - 1 :]
            logp = torch.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / 1.5, -1)
        chosen = logp.gather(-1, torch.tensor(response.ids)[:, None]).squeeze(-1).tolist()
        assert response.logprobs == pytest.approx(chosen, abs=1e-5)
        states = (hidden @ head).tolist()
        count = min(len(response.ids) + 1, longest)  # the state after the end has a value too
        assert len(response.values) == count and response.values == pytest.approx(states[:count], abs=1e-5)
        ends.add(response.ended)
    assert ends == {True, False}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2", "mistral"])
def test_greedy_is_the_argmax_of_full_forwards_in_every_architecture(architecture: str) -> None:
    tokenizer, model = tiny(architecture=architecture)
    drawn = sampled(model, tokenizer, temperature=None, max_new_tokens=6)
    for prompt, response in zip(PROMPTS, drawn, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response.ids])).logits[0, len(prompt) - 1 : -1]
        assert response.ids == logits.argmax(-1).tolist() and response.logprobs == []
        assert response.ended or len(response.ids) == 6
    assert len({tuple(response.ids) for response in drawn}) > 1


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_pad_is_not_sampled_however_likely(temperature: float | None) -> None:
    tokenizer, model = tiny()
    special_tokens.unmask_pad(model)
    pad = tokenizer.pad_token_id
    with torch.no_grad():  # its logit is the largest of all, wherever the trunk stands
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
        model.lm_head.bias[pad] = 200.0
        assert int(model(input_ids=torch.tensor([[2, 3]])).logits[0, -1].argmax()) == pad
    drawn = [r for seed in range(5) for r in sampled(model, tokenizer, temperature=temperature, seed=seed)]
    assert all(pad not in response.ids for response in drawn)
    with torch.no_grad():
        model.lm_head.bias[pad] = 0.0
    special_tokens.mask_pad(model, pad)
    expected = [r for seed in range(5) for r in sampled(model, tokenizer, temperature=temperature, seed=seed)]
    assert [response.ids for response in drawn] == [response.ids for response in expected]


# ---------------------------------------------------------------- KL


@pytest.mark.parametrize("architecture", COMMON_ARCHITECTURES)
def test_eight_more_pads_on_the_left_change_no_draw(architecture: str) -> None:
    tokenizer, model = base(architecture)
    pad = tokenizer.pad_token_id
    short = [[2, 3], [4, 5, 6], [7], [9, 9, 9]]
    sampling = Sampling(8, 1.0, 16, seed=3)
    alone_, long = (
        local.sample(LanguageModel(model, pad), rows, tokenizer, sampling) for rows in (short, [*short, [5] * 11])
    )
    assert [r.ids for r in alone_] == [r.ids for r in long[:4]]
    for a, b in zip(alone_, long, strict=False):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert len({tuple(response.ids) for response in alone_}) > 2
