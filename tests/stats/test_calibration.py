"""Reliability bins and the calibration error: by hand, by symmetry, and on scores that are made calibrated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhfctl.stats.calibration import (
    Bin,
    confidences,
    correct,
    expected_calibration_error,
    overconfidence,
    reliability_bins,
)


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def test_bins_by_hand() -> None:
    # Confidences 0.6, 0.6, 0.6, 0.9, 0.9: two of three are right in the first bin, one of two in the second.
    margins = [logit(0.6), logit(0.6), -logit(0.6), logit(0.9), -logit(0.9)]
    bins = reliability_bins(margins, bins=2)
    assert [(one.low, one.high, one.n) for one in bins] == [(0.5, 0.75, 3), (0.75, 1.0, 2)]
    assert [one.predicted for one in bins] == pytest.approx([0.6, 0.9])
    assert [one.observed for one in bins] == pytest.approx([2 / 3, 1 / 2])
    assert expected_calibration_error(bins) == pytest.approx(3 / 5 * (2 / 3 - 0.6) + 2 / 5 * 0.4)
    assert overconfidence(bins) == pytest.approx(3 / 5 * (0.6 - 2 / 3) + 2 / 5 * 0.4)


def test_ends_of_bins_and_ties() -> None:
    bins = reliability_bins([0.0, 0.0, 800.0, -800.0, logit(0.75)], bins=2)
    assert bins[0] == Bin(0.5, 0.75, 2, 0.5, 0.5)  # ties: confidence 1/2, right by half
    assert bins[1].n == 3 and bins[1].predicted == pytest.approx((1 + 1 + 0.75) / 3)  # 0.75 begins the second bin
    assert correct([3.0, 0.0, -1.0]).tolist() == [1.0, 0.5, 0.0]
    assert confidences([-800.0, 0.0]).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="finite"):
        reliability_bins([float("nan")])
    with pytest.raises(ValueError, match="at least one"):
        reliability_bins([])


def test_the_order_of_the_two_responses_plays_no_role_for_the_confidence() -> None:
    margins = np.random.default_rng(0).normal(size=50)
    assert confidences(margins).tolist() == confidences(-margins).tolist()
    mirrored = reliability_bins(-margins)
    for one, other in zip(reliability_bins(margins), mirrored, strict=True):
        assert (one.n, one.predicted) == (other.n, other.predicted)
        assert one.observed == pytest.approx(1 - other.observed)


@pytest.mark.parametrize(("scale", "sign"), [(1.0, 0), (3.0, 1), (0.3, -1)])
def test_calibrated_scores_have_no_error_and_stretched_ones_do(scale: float, sign: int) -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(scale=1.5, size=40_000)  # log-odds that the first response wins
    won = rng.random(true.size) < 1 / (1 + np.exp(-true))
    bins = reliability_bins(np.where(won, true, -true) * scale)
    error, over = expected_calibration_error(bins), overconfidence(bins)
    if sign == 0:
        assert error < 0.01 and abs(over) < 0.01
    else:
        assert error > 0.08 and np.sign(over) == sign and abs(over) > 0.08
