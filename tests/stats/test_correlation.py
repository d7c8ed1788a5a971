"""Rank correlation, accuracy by prompt and length control: by hand, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rlhfctl.stats.correlation import length_report, share_by_prompt, spearman, spearman_within
from rlhfctl.stats.paired import wilson_ci


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert spearman([1.0, 2.0, 3.0, 4.0], [20.0, 10.0, 40.0, 30.0]) == pytest.approx(0.6)
    assert spearman([1.0, 10.0, 100.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert spearman([1.0, 1.0, 2.0], [1.0, 1.0, 2.0]) == pytest.approx(1)  # ties share their mean rank
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None
    assert spearman([1.0], [1.0]) is None
    with pytest.raises(ValueError, match="equal length"):
        spearman([1.0], [1.0, 2.0])


def test_spearman_within_ignores_what_a_prompt_adds() -> None:
    scores = np.array([[1.0, 2.0, 3.0], [7.0, 5.0, 3.0], [1.0, 1.0, 1.0]])
    other = np.array([[10.0, 20.0, 30.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert spearman_within(scores, other) == pytest.approx(0.0)  # +1, -1, and a row without a correlation
    assert spearman_within(scores + np.array([[0.0], [900.0], [0.0]]), other) == pytest.approx(0.0)
    assert spearman_within(scores[2:], other[2:]) is None


def test_each_prompt_counts_once() -> None:
    share = share_by_prompt([1.0, 1.0, 1.0, 0.0, 0.5], ["a", "a", "a", "b", "c"])
    assert share.value == pytest.approx((1 + 0 + 0.5) / 3) and share.prompts == 3
    with pytest.raises(ValueError, match="one prompt per value"):
        share_by_prompt([1.0], ["a", "b"])


@pytest.mark.parametrize("right", [0, 7, 20])
def test_with_one_pair_per_prompt_the_interval_is_wilsons(right: int) -> None:
    share = share_by_prompt([1.0] * right + [0.0] * (20 - right), list(range(20)))
    expected = wilson_ci(right, 20)
    assert (share.ci95.low, share.ci95.high) == pytest.approx((expected.low, expected.high))


def draw(rng: np.random.Generator, prompts: int, pairs: int, spread: float) -> tuple[NDArray[np.float64], list[int]]:
    """Right and wrong pairs: each prompt has an accuracy of its own, 0.7 on average."""
    own = np.clip(0.7 + spread * rng.choice([-1, 1], size=prompts), 0, 1)
    values = (rng.random((prompts, pairs)) < own[:, None]).astype(float)
    return values.ravel(), [index for index in range(prompts) for _ in range(pairs)]


@pytest.mark.parametrize(("pairs", "spread"), [(1, 0.0), (6, 0.0), (6, 0.28)])
def test_intervals_over_prompts_cover_the_truth(pairs: int, spread: float) -> None:
    rng = np.random.default_rng(7)
    covered, width = 0, 0.0
    for _ in range(400):
        share = share_by_prompt(*draw(rng, 60, pairs, spread))
        covered += share.ci95.low <= 0.7 <= share.ci95.high
        width += (share.ci95.high - share.ci95.low) / 400
    assert 0.92 <= covered / 400 <= 0.99
    if pairs > 1 and spread == 0:  # independent pairs within prompts count in full
        alone = wilson_ci(42, 60)
        assert width < 0.6 * (alone.high - alone.low)


# ---------------------------------------------------------------- length


def test_length_control_by_hand() -> None:
    # Chosen longer in three pairs (two right), shorter in one (wrong), equal in one (right).
    report = length_report([1, 1, 0, 0, 1], [3, 2, 5, -1, 0], list("abcde"))
    assert report.chosen_longer == 0.75
    assert report.prefers_longer == pytest.approx(3 / 4)  # two right of the longer ones, and the wrong shorter one
    assert report.accuracy_longer is not None and report.accuracy_longer.value == pytest.approx(2 / 3)
    assert report.accuracy_shorter is not None and report.accuracy_shorter.value == 0
    assert report.controlled == pytest.approx(4 / 5 * (2 / 3 + 0) / 2 + 1 / 5 * 1)
    assert report.controlled_ci95 is not None
    assert 0 <= report.controlled_ci95.low < report.controlled < report.controlled_ci95.high <= 1


def test_what_cannot_be_known_is_none() -> None:
    longer = length_report([1, 0], [1, 2], ["a", "b"])
    assert (longer.controlled, longer.controlled_ci95, longer.accuracy_shorter) == (None, None, None)
    assert longer.chosen_longer == 1 and longer.prefers_longer == 0.5
    equal = length_report([1, 1, 0], [0, 0, 0], ["a", "b", "c"])
    assert equal.controlled == pytest.approx(2 / 3) and equal.chosen_longer is None and equal.prefers_longer is None
    with pytest.raises(ValueError, match="one of each per pair"):
        length_report([1], [1, 2], ["a"])


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_length_alone_gets_a_half_whatever_people_chose(share: float) -> None:
    rng = np.random.default_rng(8)
    by = np.where(rng.random(500) < share, 1, -1) * rng.integers(1, 9, 500)
    by[:50] = 0
    right = np.where(by > 0, 1.0, np.where(by < 0, 0.0, 0.5))
    report = length_report(right, by, list(range(500)))
    assert report.controlled == 0.5 and report.prefers_longer == 1
    assert report.controlled_ci95 is not None
    assert report.controlled_ci95.low < 0.5 < report.controlled_ci95.high
    quality = (rng.random(500) < 0.8).astype(float)  # a scorer that does not look at length keeps its accuracy
    assert length_report(quality, by, list(range(500))).controlled == pytest.approx(0.8, abs=0.06)


def test_the_interval_of_the_controlled_accuracy_covers_the_truth() -> None:
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(400):
        by = np.where(rng.random(120) < 0.75, 1, -1)
        right = (rng.random(120) < np.where(by > 0, 0.9, 0.6)).astype(float)
        interval = length_report(right, by, list(range(120))).controlled_ci95
        assert interval is not None
        covered += interval.low <= 0.75 <= interval.high
    assert 0.92 <= covered / 400 <= 0.99
