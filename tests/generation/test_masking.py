"""Sampling beside a masking policy: only its likely tokens are drawn, ends always can be, and the bits say which."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import TaskType
from small_policies import PROMPTS, sampled, tiny
from small_roles import stir_adapters

from rlhfctl.generation.generator import Response, TokenMask
from rlhfctl.generation.masking import allowed_tokens
from rlhfctl.models.adapters import MASKING, POLICY, add_adapter, add_lora
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences
from rlhfctl.models.tensors import packed_bits, unpacked_bits
from rlhfctl.recipe.schema import Lora


def pair(seed: int = 2, **changes: Any) -> tuple[Any, Any, LanguageModel]:
    """(tokenizer, policy, another policy that masks)."""
    tokenizer, model = tiny(**changes)
    return tokenizer, model, LanguageModel(tiny(seed=seed, **changes)[1], tokenizer.pad_token_id)


def bits_of(response: Response, vocabulary: int) -> torch.Tensor:
    """The allowed tokens (T, V) of a response."""
    flat = torch.frombuffer(bytearray(response.allowed), dtype=torch.uint8)
    return unpacked_bits(flat.view(len(response.ids), -1), vocabulary)


def expected_sets(masking: LanguageModel, responses: list[Response], top_mask: float, always: int) -> list[Any]:
    """The allowed tokens by full forwards of the masking policy, token by token, with a loop over the vocabulary."""
    found = []
    for prompt, response in zip(PROMPTS, responses, strict=True):
        sequences = Sequences.of([prompt], [response.ids], "cpu")
        with torch.no_grad():
            logits = masking.logits(masking.states(sequences, sequences.before_tokens()))
        for row in logits.softmax(-1).tolist():
            allowed, reached = {always}, 0.0
            for token in sorted(range(len(row)), key=lambda v: -row[v]):
                if reached >= top_mask:
                    break
                allowed.add(token)
                reached += row[token]
            found.append(allowed)
    return found


def test_bits_survive_packing() -> None:
    bits = torch.rand(5, 13, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = packed_bits(bits)
    assert packed.shape == (5, 2) and packed.dtype == torch.uint8
    assert torch.equal(unpacked_bits(packed, 13), bits)
    assert packed_bits(torch.tensor([True] + [False] * 8 + [True])).tolist() == [1, 2]


def test_the_allowed_tokens_are_the_likeliest_that_reach_the_share_and_the_ends() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    never = torch.tensor([], dtype=torch.long)
    assert allowed_tokens(logits, 0.79, 1.0, never).tolist() == [[True, True, False, False], [False, False, True, True]]
    assert allowed_tokens(logits, 0.81, 1.0, never).sum(1).tolist() == [3, 3]
    assert allowed_tokens(logits, 0.4, 1.0, torch.tensor([3])).tolist() == [
        [True, False, False, True],
        [False] * 3 + [True],
    ]
    assert allowed_tokens(logits, 0.9, 100.0, never).all()  # heat makes all alike
    assert allowed_tokens(logits * 1e4, 1.0, 1.0, never).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # by the small decoder, and by the model's own forward
@pytest.mark.parametrize("batch_size", [2, 8])
def test_only_allowed_tokens_are_drawn_and_they_are_the_masking_policys(architecture: str, batch_size: int) -> None:
    tokenizer, model, masking = pair(architecture=architecture)
    responses = [
        sampled(model, tokenizer, seed=seed, mask=TokenMask(masking, 0.6), batch_size=batch_size) for seed in range(6)
    ]
    sizes = set()
    for drawn in responses:
        sets = iter(expected_sets(masking, drawn, 0.6, tokenizer.eos_token_id))
        for response in drawn:
            bits = bits_of(response, masking.vocabulary)
            for token, row in zip(response.ids, bits, strict=True):
                assert set(row.nonzero().flatten().tolist()) == next(sets)
                assert row[token] and row[tokenizer.eos_token_id]
                sizes.add(int(row.sum()))
    assert len(sizes) > 1 and min(sizes) < masking.vocabulary
    free = [sampled(model, tokenizer, seed=seed) for seed in range(6)]
    assert [[r.ids for r in drawn] for drawn in free] != [[r.ids for r in drawn] for drawn in responses]


def test_an_end_can_be_drawn_where_the_masking_policy_never_ends() -> None:
    tokenizer, model, masking = pair()
    with torch.no_grad():
        masking.head.weight[tokenizer.eos_token_id] = 0.0
        masking.head.weight[4] = masking.head.weight[4] * 0 + 50.0
    ended = [r.ended for seed in range(20) for r in sampled(model, tokenizer, seed=seed, mask=TokenMask(masking, 0.1))]
    assert any(ended)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_a_full_forward_over_the_allowed_tokens(temperature: float) -> None:
    tokenizer, model, masking = pair()
    responses = sampled(model, tokenizer, mask=TokenMask(masking, 0.6), temperature=temperature)
    policy = LanguageModel(model, tokenizer.pad_token_id)
    sequences = Sequences.of(PROMPTS, [response.ids for response in responses], "cpu")
    packed = torch.frombuffer(bytearray(b"".join(r.allowed for r in responses)), dtype=torch.uint8)
    with torch.no_grad():
        whole = policy.response_logprobs(sequences, temperature)
        among = policy.response_logprobs(sequences, temperature, packed.view(len(whole), -1))
    logprobs = torch.tensor([p for response in responses for p in response.logprobs])
    kept = torch.tensor([k for response in responses for k in response.kept])
    assert torch.allclose(logprobs, whole, atol=1e-5)
    assert torch.allclose(logprobs - kept, among, atol=1e-5)
    assert float(kept.max()) <= 1e-6 and float(kept.min()) < -0.1


def test_a_mask_of_the_whole_distribution_changes_nothing() -> None:
    tokenizer, model, masking = pair()
    free, masked = sampled(model, tokenizer), sampled(model, tokenizer, mask=TokenMask(masking, 1.0))
    for one, other in zip(free, masked, strict=True):
        assert (one.ids, one.logprobs, one.ended) == (other.ids, other.logprobs, other.ended)
        assert other.kept == [0.0] * len(one.ids)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_adapters_of_one_model_mask_as_two_models_do(architecture: str) -> None:
    tokenizer, model = tiny(architecture=architecture)
    lora = Lora(r=4, lora_alpha=8)
    both = add_lora(model, lora, TaskType.CAUSAL_LM, seed=0)
    add_adapter(both, MASKING, lora, seed=1)
    stir_adapters(both, by=0.5, only=f".{POLICY}.", seed=1)
    stir_adapters(both, by=0.5, only=f".{MASKING}.", seed=2)
    policy = LanguageModel(both, tokenizer.pad_token_id, POLICY)
    masking = policy.with_adapter(MASKING)
    drawn = sampled(policy, tokenizer, mask=TokenMask(masking, 0.6))
    sets = expected_sets(masking, drawn, 0.6, tokenizer.eos_token_id)
    found = [set(row.nonzero().flatten().tolist()) for r in drawn for row in bits_of(r, policy.vocabulary)]
    assert found == sets
    sequences = Sequences.of(PROMPTS, [response.ids for response in drawn], "cpu")
    with torch.no_grad():
        whole = policy.response_logprobs(sequences, 1.0)
    assert torch.allclose(torch.tensor([p for r in drawn for p in r.logprobs]), whole, atol=1e-4)
