"""Reward models as scorers: on ids, on text, and on texts that are longer than their context."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhfctl.models import build, heads, scoring, tokenizing
from rlhfctl.recipe.schema import Init
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.model import ModelReward, TextModelReward


@pytest.fixture(scope="module")
def scorer() -> tuple[Any, Any]:
    """(tokenizer, reward model) that reads 8 tokens at most."""
    init = Init(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8, tokens=list("abcdef")
    )
    tokenizer = tokenizing.train_tokenizer(init, [])
    base = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
    return tokenizer, heads.scorer_on(base, seed=1).eval()


def test_ids_are_scored_as_they_are_in_any_batch(scorer: tuple[Any, Any]) -> None:
    tokenizer, model = scorer
    episodes = [Episode([2, 3], [4, 0], "ab", "c", {}), Episode([5], [6, 7, 0], "d", "ef", {})]
    expected = [scoring.score_rows(model, [row], 1)[0] for row in ([2, 3, 4, 0], [5, 6, 7, 0])]
    for batch_size in (1, 64):
        assert ModelReward(model, tokenizer.pad_token_id, batch_size)(episodes) == pytest.approx(expected, abs=1e-6)
    assert expected[0] != pytest.approx(expected[1], abs=1e-4)


def test_text_is_scored_with_an_end_token_whether_the_policy_wrote_one_or_not(scorer: tuple[Any, Any]) -> None:
    tokenizer, model = scorer
    expected = scoring.score_rows(model, [[2, 3, 4, tokenizer.eos_token_id]], 1)
    for ids in ([4], [4, tokenizer.eos_token_id]):
        reward = TextModelReward(model, tokenizer)
        assert reward([Episode([9, 9, 9], ids, "ab", "c", {})]) == pytest.approx(expected, abs=1e-6)


def test_the_beginning_of_what_is_too_long_is_cut_and_said_once(scorer: tuple[Any, Any]) -> None:
    tokenizer, model = scorer
    said: list[str] = []
    reward = ModelReward(model, tokenizer.pad_token_id, say=said.append)
    long = Episode([2, 3, 4, 5, 6, 7], [5, 4, 3, 0], "", "", {})
    kept = [4, 5, 6, 7, 5, 4, 3, 0]
    for _ in range(2):
        assert reward([long]) == pytest.approx(scoring.score_rows(model, [kept], 1), abs=1e-6)
    assert len(said) == 1 and "1 of 1 texts are longer than the 8 tokens" in said[0]
