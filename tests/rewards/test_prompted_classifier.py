"""The reward of prompts: RLPrompt's gap and z-score worked out by hand, examples of rows, the cache, and processes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import pytest
from thread_processes import in_group

from rlhfctl.errors import HandoffError
from rlhfctl.models.processes import ALONE
from rlhfctl.recipe.schema import REPLACED
from rlhfctl.recipe.sections.prompted_classifier import PromptedClassifier
from rlhfctl.rewards import prompted_classifier
from rlhfctl.rewards.build import Resources, build_reward, build_scorer
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.prompted_classifier import (
    OwnExample,
    PromptedClassifierReward,
    PromptScores,
    piecewise,
    scores_in,
    unnormalized,
    zscores,
)
from rlhfctl.rewards.weighted import WeightedReward

SECTION = PromptedClassifier(verbalizers={"a": "good", "b": "bad", "c": "so"})
P = {  # (prompt, text) -> probabilities of a, b, c
    ("u", "x"): (0.7, 0.2, 0.1),
    ("u", "y"): (0.5, 0.3, 0.2),
    ("v", "x"): (0.2, 0.5, 0.3),
    ("v", "y"): (0.1, 0.8, 0.1),
    ("w", "x"): (0.4, 0.3, 0.3),
    ("w", "y"): (0.3, 0.3, 0.4),
}
LABEL = {"x": "a", "y": "b"}
GAPS = {("u", "x"): 0.5, ("u", "y"): -0.2, ("v", "x"): -0.3, ("v", "y"): 0.7, ("w", "x"): 0.1, ("w", "y"): -0.1}
REWARDS = {pair: gap * (200 if gap > 0 else 180) for pair, gap in GAPS.items()}


class Words:
    """A frozen model that answers from the table, and remembers what it was asked."""

    labels = ["a", "b", "c"]  # noqa: RUF012 -- as LabelWords has it

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Sequence[float]]:
        self.asked += pairs
        return [P[pair] for pair in pairs]


def scores(**changes: Any) -> PromptScores:
    return PromptScores(SECTION.model_copy(update=changes), Words())  # type: ignore[arg-type]


def fixed(*pairs: tuple[str, str]) -> list[Episode]:
    """Episodes that all answer one fixed prompt: (response, text of the row's example)."""
    rows = [{"prompt": "words:", REPLACED: text, "label": LABEL[text]} for _, text in pairs]
    return [Episode([1], [2], "words:", f" {prompt}", row) for (prompt, _), row in zip(pairs, rows, strict=True)]


def test_the_gap_has_the_factors_of_the_paper() -> None:
    found = scores()
    pairs = [(prompt, (text, found.words.labels.index(LABEL[text]))) for prompt, text in GAPS]
    assert found.gaps(pairs) == pytest.approx(list(GAPS.values()))
    assert found.rewards(pairs) == pytest.approx([100.0, -36.0, -54.0, 140.0, 20.0, -18.0])
    assert piecewise(0.0, 200, 180) == 0.0
    other = scores(correct_coef=1.0, incorrect_coef=10.0)
    assert other.rewards(pairs) == pytest.approx([0.5, -2.0, -3.0, 0.7, 0.1, -1.0])


def test_a_prompt_is_scored_with_all_examples_of_the_batch() -> None:
    reward = PromptedClassifierReward(scores(), zscore=False)
    assert reward(fixed(("u", "x"), ("v", "y"), ("w", "x"))) == pytest.approx([32.0, 43.0, 1.0])
    assert reward.logged["accuracy"] == [0.5, 0.5, 0.5]
    assert reward.logged["prompt_reward"] == pytest.approx([32.0, 43.0, 1.0])
    assert reward(fixed(("u", "x"), ("v", "x"))) == pytest.approx([100.0, -54.0])
    assert reward.logged["accuracy"] == [1.0, 0.0]


def test_zscores_are_per_example_over_the_responses_of_the_batch() -> None:
    reward = PromptedClassifierReward(scores(), zscore=True)
    found = reward(fixed(("u", "x"), ("v", "y"), ("w", "x"), ("u", "y")))
    by_example = []
    for text in ("x", "y"):
        column = [REWARDS[prompt, text] for prompt in ("u", "v", "w", "u")]
        by_example.append([(one - fmean(column)) / (pstdev(column) + 1e-4) for one in column])
    assert found == pytest.approx([fmean(pair) for pair in zip(*by_example, strict=True)])
    assert reward.logged["prompt_reward"] == pytest.approx([32.0, 43.0, 1.0, 32.0])
    assert found[0] == found[3] and fmean(found) == pytest.approx(0.0, abs=1e-9)
    assert zscores([3.0, 3.0]) == [0.0, 0.0] and zscores([1.0, 3.0]) == pytest.approx([-1.0, 1.0], abs=1e-3)


def test_policies_that_read_the_text_are_scored_with_that_text_alone() -> None:
    rows = [{"prompt": text, "label": LABEL[text]} for text in ("x", "x", "y")]
    given = [Episode([1], [2], row["prompt"], z, row) for z, row in zip("uvw", rows, strict=True)]
    assert PromptedClassifierReward(scores(), zscore=False)(given) == pytest.approx([100.0, -54.0, -18.0])
    normalized = PromptedClassifierReward(scores(), zscore=True)(given)
    assert normalized == pytest.approx([1.0, -1.0, 0.0], abs=1e-4)


def test_judges_read_the_example_of_the_row() -> None:
    given = fixed(("u", "x"), ("u", "y"), ("v", "y"))
    assert OwnExample(scores(), correct=True)(given) == [1.0, 0.0, 1.0]
    assert OwnExample(scores(), correct=False)(given) == pytest.approx([100.0, -36.0, 140.0])


def test_nothing_is_asked_twice_and_the_oldest_answers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scores()
    reward = PromptedClassifierReward(found, zscore=True)
    for _ in range(2):
        reward(fixed(("u", "x"), ("v", "y"), ("u", "x")))
    asked = found.words.asked  # type: ignore[attr-defined]
    assert sorted(asked) == [("u", "x"), ("u", "y"), ("v", "x"), ("v", "y")]
    monkeypatch.setattr(prompted_classifier, "KEPT", 2)
    assert reward(fixed(("w", "x"), ("w", "y"))) == [0.0, 0.0]
    assert list(found._rows) == [("w", ("x", "y"))]
    judge = OwnExample(found, correct=True)
    for _ in range(2):
        judge(fixed(("u", "x"), ("u", "x"), ("v", "y"), ("w", "y")))
    assert list(found._known) == [("w", "y"), ("u", "x")] and asked.count(("u", "x")) == 3


def test_a_prompt_is_asked_with_the_same_texts_in_the_same_order_whatever_was_asked_before() -> None:
    once, twice = scores(), scores()
    last = fixed(("w", "y"), ("u", "x"))
    PromptedClassifierReward(twice, zscore=True)(fixed(("u", "x"), ("v", "x")))
    for found in (once, twice):
        PromptedClassifierReward(found, zscore=True)(last)
    assert once.words.asked == [("w", "x"), ("w", "y"), ("u", "x"), ("u", "y")]  # type: ignore[attr-defined]
    assert twice.words.asked == [("u", "x"), ("v", "x"), *once.words.asked]  # type: ignore[attr-defined]


def test_processes_divide_the_pairs_and_all_get_every_score() -> None:
    batch = fixed(("u", "x"), ("v", "y"), ("w", "x"))
    alone = PromptedClassifierReward(scores(), zscore=True)(batch)
    models = [Words(), Words()]

    def score(processes: Any) -> list[float]:
        own = PromptScores(SECTION, models[processes.number], processes)  # type: ignore[arg-type]
        return PromptedClassifierReward(own, zscore=True)(batch)

    assert in_group(2, score) == [alone, alone]
    assert [len(model.asked) for model in models] == [2, 4]


def test_labels_may_be_numbers_and_stand_in_another_column() -> None:
    found = PromptScores(PromptedClassifier(verbalizers={"0": "good", "1": "bad"}, label="class"), Words(), ALONE)  # type: ignore[arg-type]
    found.words.labels = ["0", "1"]
    assert found.example_of({"prompt": [{"role": "user", "content": "x"}], "class": 1}) == ("x", 1)


def test_the_recipes_names_build_the_reward_and_its_judges(tmp_path: Any) -> None:
    found = scores()
    resources = Resources(tmp_path, prompted=lambda: found)
    reward = build_reward(None, resources)
    assert isinstance(reward, PromptedClassifierReward) and reward.zscore
    plain = unnormalized(reward)
    assert isinstance(plain, PromptedClassifierReward) and not plain.zscore and plain.scores is found
    off = scores(zscore=False)
    assert not build_reward(None, Resources(tmp_path, prompted=lambda: off)).zscore  # type: ignore[attr-defined]
    judges = {name: build_scorer(name, resources) for name in ("correct", "prompted_classifier")}
    given = fixed(("u", "x"), ("u", "y"))
    assert [judge(given) for judge in judges.values()] == [[1.0, 0.0], pytest.approx([100.0, -36.0])]
    assert scores_in(judges) is found and scores_in({}) is None
    with pytest.raises(HandoffError, match="no frozen model to ask"):
        build_scorer("correct", Resources(tmp_path))


def test_evaluations_of_a_weighted_sum_have_no_zscores_either(tmp_path: Any) -> None:
    found = scores()
    weighted = build_reward({"reward": 2.0, "length": -1.0}, Resources(tmp_path, prompted=lambda: found))
    given = fixed(("u", "x"), ("v", "x"))
    assert weighted(given) == pytest.approx([2 * 1 - 1, -2 * 1 - 1], abs=1e-4)
    assert unnormalized(weighted)(given) == pytest.approx([199.0, -109.0])
    plain = WeightedReward({"length": (lambda episodes: [1.0] * len(episodes), 1.0)})
    assert unnormalized(plain) is plain
    assert unnormalized(plain.scorers["length"][0]) is plain.scorers["length"][0]
