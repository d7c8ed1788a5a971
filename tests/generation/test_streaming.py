"""A response streamed token by token is the one that local.sample draws, and its text only grows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_policies import PROMPTS, tiny

from rlhfctl.generation import local
from rlhfctl.generation.generator import Sampling
from rlhfctl.generation.streaming import readable, stream


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": None},
        {"temperature": 0.6, "top_k": 3, "top_p": 0.8},
        {"stop_ids": ()},
        {"stop_ids": (3,)},
        {"stop_strings": ("ab", "c")},
        {"stream": 4, "seed": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # the small decoder, and the model's own forward
def test_streamed_tokens_are_those_of_sampling(changes: dict[str, Any], architecture: str) -> None:
    tokenizer, model = tiny(architecture=architecture)
    values: dict[str, Any] = {"max_new_tokens": 9, "temperature": 1.0, "batch_size": 4, "seed": 5}
    sampling = Sampling(**values | changes)
    expected = local.sample(model, PROMPTS, tokenizer, sampling)
    for episode, (prompt, response) in enumerate(zip(PROMPTS, expected, strict=True)):
        got = list(stream(model, prompt, tokenizer, sampling, episode))
        assert [token for token, _ in got] == response.ids
        assert [ended for _, ended in got] == [False] * (len(got) - 1) + [response.ended]
    assert len({tuple(response.ids) for response in expected}) > 1


def test_gradients_are_left_as_they_are_while_a_response_is_under_way() -> None:
    tokenizer, model = tiny()
    for _ in stream(model, PROMPTS[0], tokenizer, Sampling(3, 1.0, 1, seed=0, stop_ids=())):
        assert torch.is_grad_enabled()


class Letters:
    """A tokenizer whose tokens are characters; 0 is a special token, 200 and 201 two halves of one character."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        text = "".join(chr(number) for number in ids if number)
        return text.replace("\xc8\xc9", "é").replace("\xc8", "\ufffd")


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("abc", (), ["a", "ab", "abc"]),
        ("ab\n\nUs", ("\n\nUser",), ["a", "ab", "ab", "ab", "ab", "ab"]),
        ("ab\n\nx", ("\n\nUser",), ["a", "ab", "ab", "ab", "ab\n\nx"]),
        ("ab\n\nUser", ("\n\nUser",), ["a", "ab", "ab", "ab", "ab", "ab", "ab", "ab"]),
        ("aab", ("aab",), ["", "", ""]),
        ("aaab", ("aab",), ["", "", "a", "a"]),
        ("ab!", ("b", "!"), ["a", "a", "a"]),
        ("a\xc8\xc9", (), ["a", "a", "aé"]),
        ("a\x00", (), ["a", "a"]),
    ],
)
def test_what_is_readable_only_grows(text: str, stops: tuple[str, ...], shown: list[str]) -> None:
    ids = [ord(char) for char in text]
    steps = [readable(ids[: count + 1], Letters(), stops) for count in range(len(ids))]  # type: ignore[arg-type]
    assert steps == shown
