"""BERTScore and perplexity over tiny local models, against numbers of the reference implementations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from random_texts import COUNT, pairs, tiny_encoder, tiny_language_model

from rlhfctl.errors import RlhfctlError
from rlhfctl.rewards.contextual import BertScore, Perplexity, f1
from rlhfctl.rewards.episode import Episode

SCORES = json.loads((Path(__file__).parent / "metric_scores.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    tiny_encoder(made / "encoder")
    tiny_language_model(made / "lm")
    return made


def agree(folder: Path, count: int) -> None:
    texts = pairs()[:count]
    found = BertScore("encoder", folder)(texts)
    assert found == pytest.approx(SCORES["bertscore"][:count], abs=1e-5)
    assert len({round(one, 5) for one in found}) > count / 20
    episodes = [Episode([], [], reference, text, {"prompt": reference}) for text, reference in texts]
    perplexities = Perplexity("./lm", folder)(episodes)
    for mine, theirs in zip(perplexities, SCORES["perplexity"][:count], strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or mine == pytest.approx(theirs, rel=1e-4)


def test_a_few_random_texts_score_as_the_reference_implementations_score_them(folder: Path) -> None:
    agree(folder, 60)


@pytest.mark.ci
def test_a_thousand_random_texts_score_as_the_reference_implementations_score_them(folder: Path) -> None:
    assert COUNT == len(SCORES["bertscore"]) == len(SCORES["perplexity"]) == 1000
    agree(folder, COUNT)


def test_each_word_is_matched_with_the_most_similar_token_by_hand() -> None:
    text = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]]])  # the last is padding
    reference = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    both = (torch.tensor([[True, True, False]]), torch.tensor([[True, True]]))
    # cosines: (1, 0), (0.6, 0.8): precision (1 + 0.8) / 2, recall (1 + 0.8) / 2
    assert float(f1(text, both[0], both[0], reference, both[1], both[1])) == pytest.approx(0.9)
    first = torch.tensor([[True, False]])  # only the first word of the reference counts
    expected = 2 * 0.9 * 1.0 / 1.9
    assert float(f1(text, both[0], both[0], reference, both[1], first)) == pytest.approx(expected)
    assert float(f1(text, both[0], both[0], reference, both[1], torch.zeros(1, 2, dtype=torch.bool))) == 0.0


def test_a_layer_may_be_named(folder: Path) -> None:
    texts = pairs()[:8]
    last, first = (BertScore(f"encoder@{layer}", folder)(texts) for layer in (2, 1))
    assert last == BertScore("encoder", folder)(texts) != first


def test_perplexity_is_that_of_the_response_alone(folder: Path) -> None:
    score = Perplexity("lm", folder)
    one, other = (Episode([], [], prompt, "cat", {}) for prompt in ("a ", "zebra "))
    alone, longer = score([one]), score([one, other, Episode([], [], "a ", "", {})])
    assert longer[0] == pytest.approx(alone[0]) and longer[1] != pytest.approx(alone[0]) and longer[2] is None
    assert longer[1] is not None and math.isfinite(longer[1])


def test_a_model_that_is_not_there_is_named(folder: Path) -> None:
    for kind in (BertScore, Perplexity):
        with pytest.raises(RlhfctlError, match="nowhere/model"):
            kind("nowhere/model", folder)
