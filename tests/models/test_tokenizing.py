"""Tokenizers: trained ones give the text back, saved ones are the same, fingerprints follow what matters."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from small_models import SMALL, WORDS, words

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import tokenizing
from rlhfctl.recipe.schema import Init

TEXTS = ["the quick brown fox", "jumps over the lazy dog, again and again", "naïve café 你好 🙂\n\ttabs"]


@pytest.fixture(scope="module")
def bpe() -> Any:
    return tokenizing.train_tokenizer(Init(**SMALL, vocab_size=300), TEXTS)


@pytest.mark.parametrize("text", [*TEXTS, "Never seen: ÆØÅ 漢字 \x00 \r\n  two  spaces ", ""])
def test_bpe_gives_the_text_back(bpe: Any, text: str) -> None:
    ids = bpe(text)["input_ids"]
    assert bpe.decode(ids) == text
    assert not {bpe.eos_token_id, bpe.pad_token_id} & set(ids)


def test_bpe_learns_from_the_texts_to_the_size_asked_for(bpe: Any) -> None:
    assert len(bpe) == 300
    assert (bpe.eos_token_id, bpe.pad_token_id) == (0, 1)
    text = "the lazy dog"
    assert len(bpe(text)["input_ids"]) < len(text)
    assert tokenizing.train_tokenizer(Init(**SMALL, vocab_size=300), TEXTS).get_vocab() == bpe.get_vocab()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ab+a.b", ["ab", "+", "a", ".", "b"]),  # the longest first
        ("(x|y\\d[^$*-'<\n é", ["(", "x|y", "\\d", "[", "^$", "*", "-", "'", "<", "\n", " ", "é"]),  # nothing a pattern
        ("a  b", ["a", " ", " ", "b"]),
    ],
)
def test_fixed_tokens_are_whole_and_give_the_text_back(text: str, tokens: list[str]) -> None:
    tokenizer, _ = words()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert [tokenizer.get_vocab()[token] for token in WORDS] == list(range(2, 2 + len(WORDS)))


def test_text_without_tokens_does_not_become_something_else() -> None:
    init = Init(**SMALL, tokens=["a", "b"])
    with pytest.raises(RlhfctlError, match="no token stands for: ' z'") as caught:
        tokenizing.train_tokenizer(init, ["ab", "a zb"])
    assert caught.value.where == "model.init.tokens"
    tokenizer = tokenizing.train_tokenizer(init, ["ab", "ba"])
    with pytest.raises(Exception, match="Missing"):
        tokenizer("a z")  # not silently end-of-sequence


@pytest.mark.parametrize("fixed", [False, True])
def test_a_saved_tokenizer_is_the_same(tmp_path: Path, bpe: Any, fixed: bool) -> None:
    tokenizer = words()[0] if fixed else bpe
    tokenizer(["a", "ab a"], padding=True, truncation=True, max_length=3)  # leaves padding in the tokenizer
    tokenizing.save_tokenizer(tokenizer, tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["padding"] is None and written["truncation"] is None
    loaded = tokenizing.load_tokenizer(str(tmp_path))
    assert tokenizing.tokenizer_fingerprint(loaded) == tokenizing.tokenizer_fingerprint(tokenizer)
    assert loaded.padding_side == "left"
    text = "ab a" * 4
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]  # and neither padded nor cut
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (0, 1)


def test_the_fingerprint_is_of_what_turns_text_into_ids(bpe: Any) -> None:
    def fingerprint(**changes: Any) -> str:
        tokenizer = copy.deepcopy(bpe)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        return tokenizing.tokenizer_fingerprint(tokenizer)

    was = tokenizing.tokenizer_fingerprint(bpe)
    used = copy.deepcopy(bpe)
    used(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert used.backend_tokenizer.padding is not None
    assert tokenizing.tokenizer_fingerprint(used) == was
    assert fingerprint(padding_side="left") == was
    assert fingerprint(chat_template="{{ messages }}") == was
    assert fingerprint(eos_token="a") != was
    grown = copy.deepcopy(bpe)
    grown.add_tokens(["<|new|>"])
    others = tokenizing.train_tokenizer(Init(**SMALL, vocab_size=300), ["zyx wvu tsr qpo " * 9])
    assert len({was, tokenizing.tokenizer_fingerprint(grown), tokenizing.tokenizer_fingerprint(others)}) == 3


def test_the_template_has_a_fingerprint_of_its_own(bpe: Any) -> None:
    tokenizer = copy.deepcopy(bpe)
    assert tokenizing.template_fingerprint(tokenizer) is None
    tokenizer.chat_template = "{{ messages }}"
    first = tokenizing.template_fingerprint(tokenizer)
    tokenizer.chat_template = "{{ messages }} "
    assert first is not None and tokenizing.template_fingerprint(tokenizer) not in (None, first)
