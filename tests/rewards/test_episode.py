"""Episodes: the completion in the shape of its prompt, cut before a stop string, with the ids of what is left."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.models import tokenizing
from rlhfctl.recipe.schema import Init
from rlhfctl.rewards.episode import make_episode, part_means, parts_of


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["a", "b", "c", "ca"])
    return tokenizing.train_tokenizer(init, [])


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_text_prompt_gets_a_text_and_a_conversation_a_message(tokenizer: Any) -> None:
    response = [*ids(tokenizer, "ab"), tokenizer.eos_token_id]
    plain = make_episode(tokenizer, {"prompt": "a", "level": 3}, [2], response)
    assert (plain.prompt, plain.completion, plain.response_ids) == ("a", "ab", response)
    assert plain.row["level"] == 3
    messages = [{"role": "user", "content": "a"}]
    talk = make_episode(tokenizer, {"prompt": messages}, [2], response)
    assert (talk.prompt, talk.completion) == (messages, [{"role": "assistant", "content": "ab"}])


def test_the_first_stop_string_ends_text_and_ids(tokenizer: Any) -> None:
    response = ids(tokenizer, "abcb")
    episode = make_episode(tokenizer, {"prompt": "a"}, [2], response, ("c", "b"))
    assert episode.completion == "a"
    assert episode.response_ids == [*ids(tokenizer, "a"), tokenizer.eos_token_id]


def test_text_that_ends_inside_a_token_is_encoded_anew(tokenizer: Any) -> None:
    response = ids(tokenizer, "bca")
    assert len(response) == 2  # b, ca: no beginning of these ids writes "bc"
    episode = make_episode(tokenizer, {"prompt": "a"}, [2], response, ("a",))
    assert episode.completion == "bc"
    assert episode.response_ids == [*ids(tokenizer, "b"), *ids(tokenizer, "c"), tokenizer.eos_token_id]


def test_means_of_parts_are_over_the_rows_that_a_part_scored() -> None:
    assert part_means({"x": [1.0, None, 3.0], "y": [None, None, None]}) == {"reward/x": 2.0}
    assert parts_of(lambda episodes: [0.0 for _ in episodes]) == {}
