"""length_control.py: statsmodels as oracle, a planted length bias that it removes, and what cannot be identified."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray

from rlhfctl.stats.length_control import fit, length_controlled_win_rate

Floats = NDArray[np.float64]


def drawn(seed: int, n: int, *, quality: float, bias: float, longer: float = 1.0) -> tuple[Floats, Floats]:
    """Draw score and length differences: the judge prefers by quality and by length, and the policy writes longer."""
    rng = np.random.default_rng(seed)
    lengths = np.round(rng.normal(longer * 10, 10, size=n))
    chance = 1 / (1 + np.exp(-(quality + bias * np.tanh(lengths / np.std(lengths)))))
    return np.where(rng.random(n) < chance, 1.0, -1.0), lengths


def test_the_fit_is_that_of_statsmodels() -> None:
    differences, lengths = drawn(0, 200, quality=0.3, bias=1.5)
    differences[:20] = 0.0  # ties
    wins, design = (differences + 1) / 2, np.tanh(lengths / np.std(lengths))
    counts = np.random.default_rng(1).integers(0, 3, size=(2, 200)).astype(np.float64)
    ours = fit(wins, design, np.vstack([np.ones(200), counts]))
    for row, weights in zip(ours, [np.ones(200), *counts], strict=True):
        oracle = sm.GLM(wins, sm.add_constant(design), family=sm.families.Binomial(), freq_weights=weights).fit()
        assert row == pytest.approx(oracle.params, abs=1e-6)


def test_a_planted_length_bias_is_removed() -> None:
    differences, lengths = drawn(1, 4_000, quality=0.0, bias=2.0)
    found = length_controlled_win_rate(differences, lengths, seed=0, samples=300)
    assert np.mean(differences > 0) > 0.7  # the bias alone wins
    assert found.win_rate == pytest.approx(0.5, abs=0.04)
    assert found.length_effect == pytest.approx(2.0, abs=0.25)


def test_a_bias_of_another_shape_is_removed_too() -> None:
    """A judge whose preference is linear in length with normal noise: not the model that is fitted."""
    rng = np.random.default_rng(2)
    lengths = rng.normal(8, 12, size=4_000)
    differences = 0.08 * lengths + rng.normal(size=4_000)
    found = length_controlled_win_rate(differences, lengths, seed=0, samples=300)
    assert np.mean(differences > 0) > 0.65
    assert found.win_rate == pytest.approx(0.5, abs=0.05)


def test_what_is_won_at_equal_length_stays() -> None:
    differences, lengths = drawn(3, 4_000, quality=1.0, bias=0.0)
    found = length_controlled_win_rate(differences, lengths, seed=0, samples=300)
    assert found.win_rate == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.03)


def test_equal_lengths_give_the_plain_win_rate() -> None:
    found = length_controlled_win_rate([1.0, 2.0, -1.0, 0.0], [0.0] * 4, seed=0)
    assert found.win_rate == pytest.approx(2.5 / 4)


def test_swapped_sides_give_one_minus() -> None:
    differences, lengths = drawn(4, 300, quality=0.4, bias=1.0)
    one, other = (length_controlled_win_rate(s * differences, s * lengths, seed=5) for s in (1, -1))
    assert one.win_rate is not None and one.ci95 is not None
    assert other.win_rate == pytest.approx(1 - one.win_rate) and other.ci95 is not None
    assert (other.ci95.low, other.ci95.high) == pytest.approx((1 - one.ci95.high, 1 - one.ci95.low))


def test_what_cannot_be_told_says_why() -> None:
    always_longer = length_controlled_win_rate([1.0, -1.0] * 20, [5.0, 7.0] * 20, seed=0)
    assert always_longer.win_rate is None and "are longer" in always_longer.why_not
    always_shorter = length_controlled_win_rate([1.0, -1.0] * 20, [-5.0, -7.0] * 20, seed=0)
    assert always_shorter.win_rate is None and "are shorter" in always_shorter.why_not
    decides = length_controlled_win_rate([1.0, -1.0] * 20, [5.0, -5.0] * 20, seed=0)
    assert decides.win_rate is None and "separates" in decides.why_not
    with pytest.raises(ValueError, match="one of each per prompt"):
        length_controlled_win_rate([1.0], [1.0, 2.0], seed=0)


def test_all_won_is_near_one_and_below_it() -> None:
    found = length_controlled_win_rate([1.0] * 40, [5.0, -5.0] * 20, seed=0)
    assert found.win_rate == pytest.approx(40.5 / 41)


def covered(draws: int, n: int) -> float:
    hits = 0
    for draw in range(draws):
        differences, lengths = drawn(draw, n, quality=0.5, bias=1.0, longer=0.5)
        found = length_controlled_win_rate(differences, lengths, seed=draw, samples=400)
        assert found.ci95 is not None
        hits += found.ci95.low <= 1 / (1 + np.exp(-0.5)) <= found.ci95.high
    return hits / draws


def test_intervals_cover() -> None:
    assert 0.90 <= covered(150, 200) <= 0.99


@pytest.mark.slow
def test_intervals_cover_in_a_thousand_draws() -> None:
    assert 0.93 <= covered(1_000, 300) <= 0.965
