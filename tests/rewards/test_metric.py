"""Metrics by name: what they read of an episode, and what they say where it is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from random_texts import tiny_encoder
from small_episodes import episodes

from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.sections.scorers import DISTINCT, OVERLAPS, SCORERS, is_metric
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.metric import MetricReward, build_metric, distinct, length_of, require_metric, text_of


def metric(name: str, folder: Path = Path()) -> MetricReward:
    return build_metric(name, folder, 8, lambda sentence: None)


def test_references_are_a_text_or_several_in_a_column() -> None:
    batch = episodes("a b c d", "a b c d", "x", reference=["a b c d", ["x y z", "a b c d"], "a b c d"])
    assert metric("bleu")(batch) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("row", [{}, {"reference": None}, {"reference": []}, {"reference": 3}, {"reference": [1]}])
def test_a_row_without_references_is_an_error_with_the_way_out(row: dict[str, Any]) -> None:
    one = Episode([1], [2], "p", "a", {"prompt": "p", **row})
    with pytest.raises(RlhfctlError, match="the metric bleu compares with the column `reference`") as caught:
        metric("bleu")([one])
    assert caught.value.fix is not None and "data.prompts.columns: {reference: summary}" in caught.value.fix
    with pytest.raises(RlhfctlError, match="the metric bleu"):
        require_metric("bleu", [{"prompt": "p", "reference": "r"}, one.row])
    for name in ("length", "distinct1", "perplexity@m"):
        require_metric(name, [one.row])


def test_a_conversation_is_scored_by_its_last_message() -> None:
    prompt, answer = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a b c d"}]
    one = Episode([1], [2, 3], prompt, answer, {"prompt": prompt, "reference": "a b c d"})
    assert metric("bleu")([one]) == [1.0] and text_of(answer) == "a b c d"
    assert metric("length")([one]) == [2.0]


def test_diversity_is_the_share_of_different_words_and_pairs() -> None:
    assert (distinct("a b a b", 1), distinct("a b a b", 2), distinct("", 1), distinct("a", 2)) == (
        0.5,
        2 / 3,
        None,
        None,
    )
    assert metric("distinct2").optional(episodes("a b a b", "a")) == [2 / 3, None]
    assert metric("distinct1")(episodes("a a")) == [0.5]


def test_length_counts_tokens_or_words_where_there_are_none() -> None:
    assert length_of(Episode([1], [5, 6, 7], "p", "a b", {})) == 3
    assert length_of(Episode([], [], "p", "a b", {})) == 2


def test_bertscore_takes_the_most_similar_reference(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "encoder")
    score = metric("bertscore@encoder", tmp_path)
    batch = episodes("a cat", "a cat", "", reference=["zzzz", ["zzzz", "a cat"], "a cat"])
    one, two, empty = score(batch)
    assert one < two == pytest.approx(1.0, abs=1e-5) and empty == 0.0


def test_the_names_of_metrics() -> None:
    metrics = [name for name in SCORERS if "compare.metrics" in SCORERS[name].places]
    assert set(metrics) == {*OVERLAPS, *DISTINCT, "bertscore", "perplexity", "length"}
    assert all(map(is_metric, [*metrics, "bertscore@a/b@3", "perplexity@./m"]))
    assert not any(map(is_metric, ["reward", "gold", "m:f", "org/rm", "http://a"]))
