"""Sampling that depends on the prompts and the seed alone, and the exact KL by brute force."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from peft import TaskType

from rlhfctl.recipe.schema import Init, Lora
from rlhfctl.training import models, rollout
from rlhfctl.training.rollout import Response, Sampling

PROMPTS = [[2, 3], [4], [5, 6, 2, 3], [2, 3], [6], [3, 3, 3]]


def tiny(seed: int = 1) -> tuple[Any, Any]:
    init = Init(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64, tokens=list("abcde")
    )
    tokenizer = models.train_tokenizer(init, [])
    model = models.build_model(init, tokenizer, seed=seed, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 12  # decided enough for greedy and sampled to differ by more than noise
    models.mask_pad(model, tokenizer.pad_token_id)
    return tokenizer, model


def sampled(model: Any, tokenizer: Any, **changes: Any) -> list[Response]:
    values: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "batch_size": 4, "seed": 5}
    return rollout.sample(model, PROMPTS, tokenizer, Sampling(**values | changes))


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
    together = rollout.sample(model, PROMPTS, tokenizer, sampling, seen.append)
    assert together == [rollout.sample(model, [prompt], tokenizer, sampling)[0] for prompt in PROMPTS]
    assert seen == [4, 6]
    assert len({tuple(response.ids) for response in together}) > 1


def test_greedy_is_the_argmax_loop() -> None:
    tokenizer, model = tiny()
    model.generation_config.update(repetition_penalty=1.5)  # a base's sampling defaults
    models.set_token_ids(model, tokenizer)
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
    first = [response.ids[0] for response in rollout.sample(model, [[2, 3]] * n, tokenizer, sampling)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[2, 3]])).logits[0, -1]
    for token, share in enumerate(torch.softmax(logits / 3.0, -1).tolist()):
        assert first.count(token) / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5 + 1e-9)


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
        given = rollout.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=temperature, batch_size=4)
        assert given == pytest.approx(expected, rel=1e-4)
        assert min(given) > 1e-3
        alone = [
            rollout.exact_kl(policy, reference, [p], [r], 1, temperature=temperature)[0]
            for p, r in zip(PROMPTS, responses, strict=True)
        ]
        assert given == pytest.approx(alone, rel=1e-5)
    assert given[0] == pytest.approx(given[3])  # the same pair in another place of the batch


def test_kl_of_a_model_from_itself_is_zero() -> None:
    _, policy = tiny()
    responses = [[3, 4, 0]] * len(PROMPTS)
    assert rollout.exact_kl(policy, models.copy_frozen(policy), PROMPTS, responses, 1, temperature=0.7) == [0.0] * 6


def test_the_reference_may_be_the_policy_without_its_adapter() -> None:
    _, base = tiny()
    separate = models.copy_frozen(base)
    policy = models.add_lora(base, Lora(r=2, lora_alpha=8), TaskType.CAUSAL_LM, seed=0)
    reference = rollout.WithoutAdapter(policy)
    responses = [[3, 4, 0], [2, 2, 6, 5, 4], [5], [3, 4, 0], [0], [6, 0]]
    assert rollout.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0) == [0.0] * 6
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    policy.train()
    given = rollout.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0)
    assert given == pytest.approx(rollout.exact_kl(policy, separate, PROMPTS, responses, 1, temperature=1.0), rel=1e-4)
    assert min(given) > 1e-6
    assert policy.training and all(p.requires_grad for n, p in policy.named_parameters() if "lora_" in n)
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():  # the adapter is on again
        assert not torch.allclose(policy(input_ids=ids).logits, separate(input_ids=ids).logits, atol=1e-4)
