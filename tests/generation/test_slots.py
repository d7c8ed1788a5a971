"""Sampling with rows that are admitted as others end gives what sampling batch by batch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_small_decoder import NOT_TAKEN, TAKEN, adapted, model_of

from rlhfctl.generation import local, slots
from rlhfctl.generation.generator import Response, Sampling
from rlhfctl.models import tokenizing
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Init

PROMPTS = [[2, 3], [4, 5, 6, 7, 8, 2], [7], [9, 9, 9], [3, 4, 5], [2, 3], [8, 8, 8, 8], [5], [6, 2]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizing.train_tokenizer(
        Init(tokens=list("abcdefgh"), hidden_size=16, num_hidden_layers=1, num_attention_heads=1), []
    )


def both(model: Any, tokenizer: Any, value_head: Any = None, **changes: Any) -> tuple[list[Response], list[Response]]:
    """The responses of both generators to the same prompts; all of the second's go through slots."""
    values: dict[str, Any] = {"max_new_tokens": 9, "temperature": 1.3, "batch_size": 3, "seed": 5}
    sampling = Sampling(**values | changes)
    policy = LanguageModel(model, tokenizer.pad_token_id, getattr(model, "active_adapter", None))
    found = slots.sample_in_slots(policy, PROMPTS, tokenizer, sampling, value_head=value_head)
    assert policy.decodes_in_slots
    return local.sample(policy, PROMPTS, tokenizer, sampling, value_head=value_head), found


def same(expected: list[Response], found: list[Response]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert (one.ids, one.ended) == (other.ids, other.ended)
        for name in ("logprobs", "kept", "values"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-9), name


SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "greedy": {"temperature": None},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.7},
    "both": {"top_k": 4, "top_p": 0.8},
    "a stop string": {"stop_strings": ("ab", "gh", "c")},
    "no end": {"stop_ids": ()},
    "one slot": {"batch_size": 1},
    "a slot for each": {"batch_size": 50},
    "one token": {"max_new_tokens": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_draws_the_same_tokens(tokenizer: Any, name: str) -> None:
    model = model_of(TAKEN["grouped heads"], torch.float64)
    expected, found = both(model, tokenizer, **SETTINGS[name])
    same(expected, found)
    if name in ("temperature", "a stop string"):
        assert len({len(response.ids) for response in found}) > 1  # some end before others, and make room


def test_values_are_those_of_the_same_states(tokenizer: Any) -> None:
    """One more than the tokens where a response ended early, as many as the tokens otherwise."""
    model = model_of(TAKEN["llama"], torch.float64)
    expected, found = both(model, tokenizer, lambda hidden: hidden.sum(-1))
    same(expected, found)
    assert any(len(response.values) == len(response.ids) + 1 for response in found)


@pytest.mark.parametrize("name", [*TAKEN, "norms inside attention", "another shape"])
def test_each_family_draws_the_same_tokens(tokenizer: Any, name: str) -> None:
    same(*both(model_of((TAKEN | NOT_TAKEN)[name], torch.float64), tokenizer))


def test_an_adapter_draws_the_same_tokens(tokenizer: Any) -> None:
    plain = both(model_of(TAKEN["qwen2"], torch.float64), tokenizer)
    model = adapted(model_of(TAKEN["qwen2"], torch.float64)).double()
    expected, found = both(model, tokenizer)
    same(expected, found)
    assert [one.ids for one in found] != [one.ids for one in plain[1]]  # the adapter has a say


def test_progress_counts_responses_that_have_ended(tokenizer: Any) -> None:
    policy, seen = LanguageModel(model_of(TAKEN["llama"]), tokenizer.pad_token_id), []
    sampling = Sampling(9, 1.3, 3, seed=5)
    slots.sample_in_slots(policy, PROMPTS, tokenizer, sampling, on_batch=seen.append)
    assert seen == sorted(set(seen)) and seen[-1] == len(PROMPTS) and len(seen) > 3


def test_what_an_episode_draws_depends_on_its_number_alone(tokenizer: Any) -> None:
    policy = LanguageModel(model_of(TAKEN["llama"], torch.float64), tokenizer.pad_token_id)
    sampling = Sampling(9, 1.3, 4, seed=5)
    every = slots.sample_in_slots(policy, PROMPTS, tokenizer, sampling)
    some = slots.sample_in_slots(policy, [PROMPTS[5], PROMPTS[1]], tokenizer, sampling, episodes=[5, 1])
    assert [one.ids for one in some] == [every[5].ids, every[1].ids]
    assert slots.sample_in_slots(policy, [], tokenizer, sampling) == []


def test_slots_stay_full_until_the_queue_is_empty(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps of the model than batch by batch, and fewer rows in a step once nobody waits."""
    rows: list[int] = []
    step = slots.StaticDecoder.step

    def counted(self: Any, tokens: Any, longest: int) -> None:
        rows.append(len(tokens))
        step(self, tokens, longest)

    policy = LanguageModel(model_of(TAKEN["llama"], torch.float64), tokenizer.pad_token_id)
    sampling = Sampling(9, 1.3, 4, seed=5)
    assert slots.supports(policy)
    monkeypatch.setattr(slots.StaticDecoder, "step", counted)
    lengths = [len(one.ids) for one in slots.sample_in_slots(policy, PROMPTS * 3, tokenizer, sampling)]
    assert rows == sorted(rows, reverse=True) and rows[0] == 4 and rows[-1] < 4
    in_batches = sum(max(lengths[start : start + 4]) - 1 for start in range(0, len(lengths), 4))
    assert len(rows) < in_batches


@pytest.mark.parametrize("name", ["a window", "angles that depend on the length"])
def test_other_models_are_sampled_batch_by_batch(tokenizer: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = LanguageModel(model_of(NOT_TAKEN[name]), tokenizer.pad_token_id)
    monkeypatch.setattr(slots, "StaticDecoder", lambda *_: pytest.fail("decoded in slots"))
    sampling = Sampling(9, 1.3, 4, seed=5)
    found = slots.sample_in_slots(policy, PROMPTS, tokenizer, sampling)
    assert found == local.sample(policy, PROMPTS, tokenizer, sampling)


def test_the_recipes_word_chooses() -> None:
    assert slots.generator_for("batch") is local.sample
    assert slots.generator_for("slots") is slots.sample_in_slots
