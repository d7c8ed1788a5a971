"""Overlap with references: numbers worked out by hand, and those of the reference implementations on random texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from random_texts import COUNT, pairs

from rlhfctl.errors import EngineError
from rlhfctl.rewards import overlap as module
from rlhfctl.rewards.overlap import bleu, corpus_score, overlap, require

SCORES: dict[str, list[float]] = json.loads((Path(__file__).parent / "metric_scores.json").read_text())
NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "sacrebleu", "meteor")
LIBRARIES = {"bleu": "math", "sacrebleu": "sacrebleu", "meteor": "nltk"}


def function(name: str) -> Any:
    pytest.importorskip(LIBRARIES.get(name, "rouge_score"), reason="the extra `metrics` is not installed")
    return overlap(name)


def agree(name: str, count: int) -> None:
    score = function(name)
    found = [score(text, [reference]) for text, reference in pairs()[:count]]
    assert found == pytest.approx(SCORES[name][:count], abs=1e-8)
    assert len(set(found)) > count / 20  # no constant would pass


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_random_texts_score_as_the_reference_implementation_scores_them(name: str) -> None:
    agree(name, 100)


@pytest.mark.ci
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_random_texts_score_as_the_reference_implementation_scores_them(name: str) -> None:
    assert COUNT == len(SCORES[name]) == 1000
    agree(name, COUNT)


def test_bleu_by_hand() -> None:
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; the reference has as many words.
    text, reference = "the cat sat on a mat", "the cat sat on the mat"
    assert bleu(text, [reference]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu("the cat sat on", [reference]) == pytest.approx(math.exp(1 - 6 / 4))  # the brevity penalty alone
    assert bleu(reference, [reference]) == 1.0
    assert bleu("the cat sat", [reference]) == 0.0  # no quadruple
    assert bleu("", [reference]) == 0.0


def test_several_references_together_or_the_best_of_them() -> None:
    text = "the cat sat on the mat"
    others = ["a dog ran", text]
    assert bleu(text, others) == 1.0
    # "the the the": clipped by the reference with the most, and the shortest reference counts for the length
    assert bleu("a b c d e", ["a b c d", "x y z d e"]) == pytest.approx((1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1)
    for name in ("rouge1", "sacrebleu", "meteor"):
        score = function(name)
        assert score(text, others) == pytest.approx(score(text, [text]), abs=1e-6)
        assert score(text, [others[0]]) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_text_scores_0(name: str) -> None:
    assert function(name)("", ["a cat"]) == 0.0
    assert function(name)("a cat", [""]) == 0.0


def test_meteor_knows_stems_and_no_synonyms() -> None:
    meteor = function("meteor")
    same, stem = meteor("the cats ran home", ["the cats ran home"]), meteor("the cat ran home", ["the cats ran home"])
    assert same == pytest.approx(stem)  # cat and cats have one stem
    assert meteor("dwelling", ["house"]) == 0.0  # WordNet would know


def test_sacrebleu_of_a_corpus_is_not_the_mean_of_its_texts() -> None:
    function("sacrebleu")
    texts, references = ["a b c d e f", "x"], [["a b c d e f"], ["y z"]]
    whole = corpus_score("sacrebleu", texts, references)
    assert whole is not None and whole > 0.5 and corpus_score("bleu", texts, references) is None
    assert corpus_score("sacrebleu", [], []) is None


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for name, library in (("rougeL", "rouge-score"), ("sacrebleu", "sacrebleu"), ("meteor", "nltk")):
        with pytest.raises(EngineError, match=f"the metric {name} needs the library {library}") as caught:
            overlap(name)
        assert caught.value.fix == "pip install 'rlhfctl[metrics]'"
    require("bleu")
    assert overlap("bleu")("a b c d", ["a b c d"]) == 1.0
