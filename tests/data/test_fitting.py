"""Prompts that leave room for a response: the same answer for PPO, the comparison and the plan."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder
from rlhfctl.data.fitting import encode_prompts, fit_lengths, fit_to_context, longest_prompt, longest_row
from rlhfctl.errors import DataError
from rlhfctl.models import tokenizing
from rlhfctl.recipe.schema import Data, Init

ROWS = [{"prompt": "word " * count + "end"} for count in (1, 3, 9, 20)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["word", "end", " "])
    return tokenizing.train_tokenizer(init, [])


@pytest.mark.parametrize("context", [None, 30, 18])
@pytest.mark.parametrize("section", [Data(), Data(max_prompt_length=8), Data(overlong_prompts="truncate")])
def test_lengths_alone_predict_what_fits(tokenizer: PreTrainedTokenizerBase, context: int, section: Data) -> None:
    encoder = Encoder(tokenizer)
    lengths = [len(encoder.prompt(row["prompt"])) for row in ROWS]
    fitted = fit_to_context(ROWS, tokenizer, context, 10, section)
    assert len(fitted.rows) == len(fitted.ids) == len(ROWS) - fitted.dropped
    predicted = fit_lengths(lengths, context, 10, section)
    if section.overlong_prompts == "truncate":  # whole words are cut, so a prompt may become shorter than the limit
        assert len(predicted) == len(fitted.ids) == len(ROWS)
        assert all(len(ids) <= length for ids, length in zip(fitted.ids, predicted, strict=True))
        assert fitted.cut == sum(length > (fitted.limit or max(lengths)) for length in lengths)
    else:
        assert predicted == [len(ids) for ids in fitted.ids]


def test_what_is_dropped_or_cut_is_counted_aloud(tokenizer: PreTrainedTokenizerBase) -> None:
    said: list[str] = []
    rows, ids = encode_prompts(ROWS, tokenizer, 18, 10, Data(), said.append)
    assert rows == ROWS[:2] and [len(one) for one in ids] == [3, 7]
    assert said == ["2 of 4 prompts are longer than 8 tokens and are dropped"]
    said.clear()
    rows, _ = encode_prompts(ROWS, tokenizer, 18, 10, Data(overlong_prompts="truncate"), said.append)
    assert len(rows) == 4 and ROWS[3]["prompt"].endswith(rows[3]["prompt"])
    assert said == ["2 of 4 prompts are longer than 8 tokens and are cut within their content"]


def test_where_no_prompt_fits_the_key_to_change_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="leaves no room for a prompt in a context of 10") as caught:
        encode_prompts(ROWS, tokenizer, 10, 10, Data(), pytest.fail)
    assert (caught.value.where, caught.value.fix) == ("ppo.response_length", "lower it")
    for context, section, key in (
        (12, Data(), "lower ppo.response_length"),
        (12, Data(max_prompt_length=2), "raise data.max_prompt_length"),
    ):
        with pytest.raises(DataError, match="all 4 prompts have more tokens than") as caught:
            encode_prompts(ROWS, tokenizer, context, 10, section, lambda sentence: None)
        assert caught.value.fix is not None and caught.value.fix.startswith(key)
    assert encode_prompts([], tokenizer, 12, 10, Data(), pytest.fail) == ([], [])


@pytest.mark.parametrize(("stated", "context", "response", "limit"), [
    (60, 32, 8, 24), (10, 32, 8, 10), (None, 32, 8, 24), (60, None, 8, 60), (None, None, 8, None), (60, 32, 40, -8),
])  # fmt: skip
def test_a_prompt_has_what_the_recipe_states_and_the_context_leaves(
    stated: int | None, context: int | None, response: int, limit: int | None
) -> None:
    assert longest_prompt(stated, context, response) == limit


@pytest.mark.parametrize(("stated", "context", "limit", "name"), [
    (64, 32, 32, "the model's context of 32"), (None, 32, 32, "the model's context of 32"),
    (32, 32, 32, "max_length=32"), (16, 32, 16, "max_length=16"), (16, None, 16, "max_length=16"),
])  # fmt: skip
def test_a_row_has_what_max_length_and_the_context_allow(
    stated: int | None, context: int | None, limit: int, name: str
) -> None:
    assert longest_row(stated, context) == (limit, name)
    assert longest_row(None, None)[0] is None
