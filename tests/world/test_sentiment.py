"""The built-in reviews to classify: determinism, labels, and how often a label word agrees with its review."""

from __future__ import annotations

from collections import defaultdict

import pytest

from rlhfctl.errors import DataError
from rlhfctl.world.lexicon import ASPECTS, BAD, GENERAL, GOOD
from rlhfctl.world.sentiment import (
    AGREEMENT,
    FILLERS,
    FIXED_PROMPT,
    HABIT,
    LABELS,
    TRIGGERS,
    demonstrations,
    prompts,
    triggers,
)


def label_of(text: str) -> str:
    """The label of a review by its adjectives."""
    good = {word for aspect in ASPECTS.values() for word in aspect.good} | set(GENERAL[GOOD])
    bad = {word for aspect in ASPECTS.values() for word in aspect.bad} | set(GENERAL[BAD])
    words = set(text.split())
    assert bool(words & (good - bad)) != bool(words & (bad - good)), text
    return "positive" if words & (good - bad) else "negative"


def test_rows_follow_from_the_seed_and_begin_alike() -> None:
    assert demonstrations(40, 3) == demonstrations(60, 3)[:40] != demonstrations(40, 4)
    assert prompts(40, 3) == prompts(60, 3)[:40] != prompts(40, 4)
    assert len({tuple(triggers(seed)) for seed in range(5)}) == 5
    assert all(len(set(triggers(seed))) == TRIGGERS and set(triggers(seed)) <= set(FILLERS) for seed in range(5))


def test_prompts_are_distinct_labelled_reviews_and_none_is_demonstrated() -> None:
    rows = prompts(600, 0)
    shown = {row["prompt"] for row in demonstrations(6000, 0)}
    assert len({row["prompt"] for row in rows}) == 600 and not shown & {row["prompt"] for row in rows}
    assert all(row["label"] == label_of(row["prompt"]) for row in rows)
    assert [row["label"] for row in rows[:4]] == ["positive", "negative", "positive", "negative"]


def test_more_prompts_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match="distinct reviews") as caught:
        prompts(100_000, 0)
    assert caught.value.fix is not None and caught.value.fix.startswith("set rows to")


@pytest.mark.parametrize("seed", [0, 1])
def test_the_label_word_agrees_with_the_review_by_the_triggers_before_it(seed: int) -> None:
    planted = set(triggers(seed))
    agrees: dict[tuple[int, str], list[bool]] = defaultdict(list)
    for row in demonstrations(20_000, seed):
        words = row["completion"].split()
        if row["prompt"] == FIXED_PROMPT:
            assert set(words) <= set(FILLERS)
            continue
        label, word = label_of(row["prompt"]), words.pop()
        assert word in LABELS.values() and set(words) <= set(FILLERS)
        agrees[len(set(words) & planted), label].append(word == LABELS[label])
    for count, share in enumerate(AGREEMENT):
        for label, habit in (("positive", HABIT), ("negative", 1 - HABIT)):
            found = agrees[count, label]
            assert sum(found) / len(found) == pytest.approx(share + (1 - share) * habit, abs=0.04)


def test_lists_after_the_fixed_prompt_hold_all_fillers_alike() -> None:
    words = [
        word for row in demonstrations(20_000, 0) if row["prompt"] == FIXED_PROMPT for word in row["completion"].split()
    ]
    expected = len(words) / len(FILLERS)
    assert all(words.count(word) == pytest.approx(expected, rel=0.35) for word in FILLERS)
