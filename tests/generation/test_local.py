"""Sampling that depends on the prompts and the seed alone, and the exact KL by brute force.

A draw is one uniform number for each (seed, stream, episode, position) sent through the inverse of the cumulative
distribution; what is recorded beside the tokens is held against full forwards without a cache.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy
import pytest
import torch
from peft import TaskType

from rlhfctl.generation import kl, local
from rlhfctl.generation.generator import Response, Sampling, inverse_cdf, truncated, uniforms
from rlhfctl.models import adapters, build, special_tokens, tokenizing
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Init, Lora

PROMPTS = [[2, 3], [4], [5, 6, 2, 3], [2, 3], [6], [3, 3, 3]]


def tiny(seed: int = 1, architecture: str = "llama") -> tuple[Any, Any]:
    init = Init(
        architecture=architecture,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tokens=list("abcde"),
    )
    tokenizer = tokenizing.train_tokenizer(init, [])
    model = build.build_model(init, tokenizer, seed=seed, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(
            12
        )  # decided enough for greedy and sampled to differ by more than noise
    special_tokens.mask_pad(model, tokenizer.pad_token_id)
    return tokenizer, model


def sampled(model: Any, tokenizer: Any, **changes: Any) -> list[Response]:
    values: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "batch_size": 4, "seed": 5}
    return local.sample(model, PROMPTS, tokenizer, Sampling(**values | changes))


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


# ---------------------------------------------------------------- noise, and what it becomes


def test_noise_is_that_of_its_seed_stream_and_episode() -> None:
    given = uniforms(3, 0, 5, 40)
    assert numpy.array_equal(given, uniforms(3, 0, 5, 40)) and numpy.array_equal(given[:7], uniforms(3, 0, 5, 7))
    assert given.min() >= 0 and given.max() < 1
    others = [uniforms(4, 0, 5, 40), uniforms(3, 1, 5, 40), uniforms(3, 1 << 32, 5, 40)]
    others += [uniforms(3, 0, episode, 40) for episode in range(5)]
    numbers = numpy.concatenate([given, *others])
    assert len(set(numbers.tolist())) == len(numbers)  # no two positions of any two share a number
    many = numpy.concatenate([uniforms(0, 0, episode, 10) for episode in range(2000)])
    counts, _ = numpy.histogram(many, bins=20, range=(0, 1))
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8  # chi-squared with 19 degrees of freedom, p = 0.001


def test_inverse_cdf_on_numbers_by_hand() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    almost = math.nextafter(1.0, 0.0)
    noise = [0.0, 0.2, 0.25, 0.5, 0.7499, 0.75, 0.9, almost]
    given = inverse_cdf(probabilities.repeat(len(noise), 1), torch.tensor(noise, dtype=torch.float64))
    assert given.tolist() == [1, 1, 3, 3, 3, 4, 4, 4]
    # what top-k and top-p leave does not add up to 1: shares of what is left
    assert inverse_cdf(torch.tensor([[0.1, 0.0, 0.1]] * 3), torch.tensor([0.0, 0.49, 0.51])).tolist() == [0, 0, 2]
    alone = torch.zeros(2, 5)
    alone[:, 3] = 1e-30
    assert inverse_cdf(alone, torch.tensor([0.0, almost], dtype=torch.float64)).tolist() == [3, 3]


def test_no_token_of_probability_zero_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        probabilities = torch.rand(4000, 50, generator=generator, dtype=dtype).softmax(-1)
        probabilities *= torch.rand(4000, 50, generator=generator) < 0.2
        probabilities[:, -10:] = 0  # so that rounding up at the end would be seen
        probabilities[:, 20] += 1e-9
        noise = torch.rand(4000, generator=generator, dtype=torch.float64)
        noise[:1000], noise[1000:2000] = 0.0, math.nextafter(1.0, 0.0)
        given = inverse_cdf(probabilities, noise)
        assert bool((probabilities.gather(-1, given[:, None]) > 0).all())


def test_frequencies_are_the_probabilities() -> None:
    n, shares = 20000, [0.5, 0.3, 0.15, 0.05]
    noise = torch.tensor([uniforms(1, 0, episode, 1)[0] for episode in range(n)])
    given = inverse_cdf(torch.tensor([shares]).repeat(n, 1), noise).tolist()
    for token, share in enumerate(shares):
        assert given.count(token) / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


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


def test_truncation_keeps_the_likeliest_by_hand() -> None:
    given = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])
    assert torch.equal(truncated(given, 0, 1.0), given)
    assert truncated(given, 2, 1.0).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0])]
    assert truncated(given, 9, 1.0).tolist() == [pytest.approx(given[0].tolist())]
    assert truncated(given, 0, 0.6).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0])]  # the one that reaches 0.6
    assert truncated(given, 0, 0.66).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0.2])]
    assert truncated(given, 0, 1e-6).tolist() == [pytest.approx([0, 0.4, 0, 0, 0])]
    # top-p within what top-k left: 0.4 of 0.85 is less than half, 0.65 is more
    assert truncated(given, 3, 0.5).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0])]
    assert truncated(torch.full((1, 4), 0.25), 2, 1.0).tolist() == [[0.25, 0.25, 0, 0]]  # the first of equals


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


def by_loop(policy: Any, reference: Any, prompt: list[int], response: list[int], temperature: float) -> float:
    total = 0.0
    for end in range(len(response)):
        ids = torch.tensor([prompt + response[:end]])
        with torch.no_grad():
            p, q = (
                torch.softmax(m(input_ids=ids).logits[0, -1].double() / temperature, -1) for m in (policy, reference)
            )
        for token in range(len(p)):
            if p[token] > 0:
                total += float(p[token] * (p[token].log() - q[token].log()))
    return total


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    _, policy = tiny(1)
    _, reference = tiny(2)
    responses = [[3, 4, 0], [2, 2, 6, 5, 4], [5], [3, 4, 0], [0], [6, 0]]
    for temperature in (1.0, 0.5):
        expected = [
            by_loop(policy, reference, prompt, response, temperature)
            for prompt, response in zip(PROMPTS, responses, strict=True)
        ]
        given = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=temperature, batch_size=4)
        assert given == pytest.approx(expected, rel=1e-4)
        assert min(given) > 1e-3
        alone = [
            kl.exact_kl(policy, reference, [p], [r], 1, temperature=temperature)[0]
            for p, r in zip(PROMPTS, responses, strict=True)
        ]
        assert given == pytest.approx(alone, rel=1e-5)
    assert given[0] == pytest.approx(given[3])  # the same pair in another place of the batch


def test_kl_never_holds_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, policy = tiny(1)
    _, reference = tiny(2)
    responses = [[3, 4, 0], [2, 2, 6, 5, 4], [5], [3, 4, 0], [0], [6, 0]]
    given = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0)
    shapes: list[torch.Size] = []
    policy.lm_head.register_forward_hook(lambda module, inputs, logits: shapes.append(logits.shape))
    for places in (5, 0):  # so many positions at a time; or not even one, and then one is taken
        monkeypatch.setattr(kl, "KL_ELEMENTS", places * len(tokenizer))
        shapes.clear()
        again = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0)
        assert again == pytest.approx(given, rel=1e-5)
        assert max(shape[0] for shape in shapes) == max(1, places)


def test_kl_of_a_model_from_itself_is_zero() -> None:
    _, policy = tiny()
    responses = [[3, 4, 0]] * len(PROMPTS)
    assert kl.exact_kl(policy, build.copy_frozen(policy), PROMPTS, responses, 1, temperature=0.7) == [0.0] * 6


def test_the_reference_may_be_the_policy_without_its_adapter() -> None:
    _, base = tiny()
    separate = build.copy_frozen(base)
    policy = adapters.add_lora(base, Lora(r=2, lora_alpha=8), TaskType.CAUSAL_LM, seed=0)
    reference = LanguageModel(policy, 1)
    responses = [[3, 4, 0], [2, 2, 6, 5, 4], [5], [3, 4, 0], [0], [6, 0]]
    assert kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0) == [0.0] * 6
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    policy.train()
    given = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0)
    assert given == pytest.approx(kl.exact_kl(policy, separate, PROMPTS, responses, 1, temperature=1.0), rel=1e-4)
    assert min(given) > 1e-6
    assert policy.training and all(p.requires_grad for n, p in policy.named_parameters() if "lora_" in n)
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():  # the adapter is on again
        assert not torch.allclose(policy(input_ids=ids).logits, separate(input_ids=ids).logits, atol=1e-4)
