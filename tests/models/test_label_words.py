"""Label words of a frozen model, causal or masked: the template, tokens, probabilities, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SMALL, logits_of, masked_model

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import build, tokenizing
from rlhfctl.models.label_words import LabelWords, is_masked, load_masked_lm
from rlhfctl.recipe.schema import Init

WORDS = {"positive": "good", "negative": "bad"}
TEMPLATE = "{text} {prompt} {mask}"
VOCABULARY = ["the", "soup", "was", "cold", "warm", "then", "so", "good", "bad"]


def causal() -> tuple[Any, Any]:
    tokens = [*VOCABULARY, *(f" {word}" for word in VOCABULARY)]
    init = Init(**SMALL | {"tokens": tokens, "max_position_embeddings": 24})
    tokenizer = tokenizing.train_tokenizer(init, [])
    return build.build_model(init, tokenizer, seed=1, dtype=torch.float32), tokenizer


def masked() -> tuple[Any, Any]:
    return masked_model(VOCABULARY, 24)


def softmax(logits: torch.Tensor, ids: list[int]) -> list[float]:
    return torch.softmax(logits[ids], dim=-1).tolist()


PAIRS = [("then so", "the soup was cold"), ("", "the soup was warm"), ("so", "the soup"), ("then", "was cold")]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_causal_model_says_the_next_word(batch_size: int) -> None:
    model, tokenizer = causal()
    words = LabelWords(model, tokenizer, TEMPLATE, WORDS, batch_size=batch_size)
    assert words.ids == [tokenizer.convert_tokens_to_ids(token) for token in (" good", " bad")]
    assert [words.rendered(*pair) for pair in PAIRS[:2]] == ["the soup was cold then so", "the soup was warm"]
    for (prompt, text), found in zip(PAIRS, words(PAIRS), strict=True):
        ids = tokenizer(f"{text} {prompt}".rstrip())["input_ids"]
        assert found == pytest.approx(softmax(logits_of(model, ids)[-1], words.ids), abs=1e-6)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_masked_model_fills_the_place(batch_size: int) -> None:
    model, tokenizer = masked()
    words = LabelWords(model, tokenizer, "so {mask} : {text} {prompt}", WORDS, batch_size=batch_size)
    assert words.masked and words.rendered("then", "the [MASK] soup") == "so [MASK] : the  soup then"
    for (prompt, text), found in zip(PAIRS, words(PAIRS), strict=True):
        ids = tokenizer(f"so [MASK] : {text} {prompt}")["input_ids"]
        assert found == pytest.approx(softmax(logits_of(model, ids)[2], words.ids), abs=1e-6)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEMPLATE, "a [MASK]"), ("{prompt} {text} {mask}", "a [MASK]"), ("{text}{prompt}{mask}", "a[MASK]"),
        ("{text}. It was {prompt} {mask}", "a. It was [MASK]"),
    ],
)  # fmt: skip
def test_an_empty_prompt_takes_a_space_along(template: str, expected: str) -> None:
    assert LabelWords(*masked(), template, WORDS).rendered(" ", "a") == expected


@pytest.mark.parametrize(
    ("make", "template", "words", "what"),
    [
        (causal, "{text} {mask} {prompt}", WORDS, "does not stand last"),
        (causal, TEMPLATE, {"a": "good", "b": "cold soup"}, "is 2 tokens of the model"),
        (masked, TEMPLATE, {"a": "good", "b": "marvellous"}, "must be one that it knows"),
    ],
)
def test_words_and_templates_that_the_model_cannot_use_are_refused(
    make: Any, template: str, words: dict[str, str], what: str
) -> None:
    with pytest.raises(RlhfctlError, match=what) as caught:
        LabelWords(*make(), template, words)
    assert caught.value.fix and str(caught.value.where).startswith("reward.prompted_classifier")


@pytest.mark.parametrize("make", [causal, masked])
def test_what_is_longer_than_the_context_loses_the_start_of_its_text_and_is_told_once(make: Any) -> None:
    said: list[str] = []
    words = LabelWords(*make(), TEMPLATE, WORDS, say=said.append)
    long = "cold warm " * 20 + "the soup"
    ids = words.tokenizer(words.rendered("so", long))["input_ids"]
    begin, end = (ids[:1], ids[-23:]) if words.masked else ([], ids[-24:])
    place = 22 if words.masked else 23
    (cut, again) = words([("so", long), ("then", long)])
    expected = softmax(logits_of(words.model, [*begin, *end])[place], words.ids)
    assert cut == pytest.approx(expected, abs=1e-6) and cut != pytest.approx(again, abs=1e-6)
    assert len(said) == 1 and "more tokens than the 24" in said[0]


def test_a_masked_model_is_known_by_its_configuration_and_loads_whole(tmp_path: Path) -> None:
    model, tokenizer = masked()
    model.save_pretrained(tmp_path / "whole")
    assert is_masked(model.config) and not is_masked(causal()[0].config)
    loaded = load_masked_lm(str(tmp_path / "whole"), torch.float32)
    assert LabelWords(loaded, tokenizer, TEMPLATE, WORDS)(PAIRS) == LabelWords(model, tokenizer, TEMPLATE, WORDS)(PAIRS)
    state = {name: value for name, value in model.state_dict().items() if "transform" not in name}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(RlhfctlError, match="lacks the weights"):
        load_masked_lm(str(tmp_path / "part"), torch.float32)
