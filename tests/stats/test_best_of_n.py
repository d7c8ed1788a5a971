"""Best-of-n curves: against all subsets of a small pool, closed forms, and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rlhfctl.stats import best_of_n
from rlhfctl.stats.best_of_n import chances, decline, kl_bound, peak, sizes, standardized


def by_all_subsets(proxy: list[float], scores: list[float], n: int) -> float:
    """The mean over all subsets of n samples of the score at the one that the proxy likes best; ties are shared."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[index] for index in subset)
        found.append(np.mean([scores[index] for index in subset if proxy[index] == top]))
    return float(np.mean(found))


@pytest.mark.parametrize("proxy", [[0.3, -1.0, 2.0, 0.7, 5.0, 1.1], [1.0, 1.0, 0.0, 2.0, 2.0, 1.0], [4.0] * 6])
def test_every_n_equals_the_mean_over_all_subsets(proxy: list[float]) -> None:
    scores = [0.5, 2.0, -1.0, 3.0, 0.25, -4.0]
    curve = best_of_n.best_of_n([proxy], [scores], range(1, 7), seed=0, resamples=10)
    assert curve.mean == pytest.approx([by_all_subsets(proxy, scores, n) for n in range(1, 7)])
    own = best_of_n.best_of_n([proxy], [proxy], range(1, 7), seed=0, resamples=10)
    assert own.mean == pytest.approx([by_all_subsets(proxy, proxy, n) for n in range(1, 7)])
    assert own.mean == sorted(own.mean) and own.mean[-1] == pytest.approx(max(proxy))


def test_chances_by_hand() -> None:
    # The best of 2 among 3: the best is in 2 of 3 pairs, the second in the remaining one, the worst never wins.
    assert chances([[2.0, 9.0, 5.0]], 2)[0] == pytest.approx([0.0, 2 / 3, 1 / 3])
    assert chances([[9.0, 9.0, 5.0]], 2)[0] == pytest.approx([0.5, 0.5, 0.0])  # the tie shares
    many = chances(np.random.default_rng(0).normal(size=(3, 256)), 64)
    assert many.sum(axis=1) == pytest.approx([1.0] * 3) and many.min() >= 0
    for n in (0, 4):
        with pytest.raises(ValueError, match="must lie in"):
            chances([[1.0, 2.0, 3.0]], n)


def test_uniform_scores_reach_what_order_statistics_say() -> None:
    """E[max of n] of uniform numbers is n / (n + 1); a scorer with correlation r keeps the share r of a normal gain."""
    rng = np.random.default_rng(2)
    uniform = rng.random((400, 64))
    curve = best_of_n.best_of_n(uniform, uniform, [1, 4, 16], seed=0, resamples=500)
    for n, mean, ci95 in zip([1, 4, 16], curve.mean, curve.ci95, strict=True):
        assert mean == pytest.approx(n / (n + 1), abs=0.01)
        assert ci95.low <= n / (n + 1) <= ci95.high
    proxy, noise = rng.normal(size=(2, 400, 64))
    gold = 0.6 * proxy + 0.8 * noise
    shared = best_of_n.best_of_n(proxy, gold, [16], seed=0, resamples=50).mean[0]
    own = best_of_n.best_of_n(proxy, proxy, [16], seed=0, resamples=50).mean[0]
    assert own == pytest.approx(1.766, abs=0.05)  # expected largest of 16 standard normal numbers
    assert shared / own == pytest.approx(0.6, abs=0.04)


def test_the_estimate_is_unbiased_for_n_below_the_pool() -> None:
    rng = np.random.default_rng(3)
    small = [best_of_n.best_of_n(rows, rows, [4], seed=0, resamples=10).mean[0] for rows in rng.random((300, 1, 8))]
    assert np.mean(small) == pytest.approx(4 / 5, abs=0.02)


def test_intervals_cover_the_truth_over_prompts() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        offsets = rng.normal(size=(40, 1))  # prompts differ: the mean over them is uncertain
        scores = offsets + rng.normal(size=(40, 8))
        interval = best_of_n.best_of_n(rng.normal(size=(40, 8)), scores, [4], seed=0, resamples=200).ci95[0]
        covered += interval.low <= 0.0 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99  # the bootstrap over 40 prompts is a little short


def test_standardized_scores_ignore_what_a_prompt_adds() -> None:
    scores = np.random.default_rng(5).normal(size=(7, 9))
    given = standardized(scores)
    assert given.mean(axis=1) == pytest.approx([0.0] * 7)
    assert (given**2).sum() / (7 * 8) == pytest.approx(1.0)
    moved = standardized(5 * scores + np.arange(7)[:, None] * 100)
    assert moved == pytest.approx(given)
    assert standardized(np.full((3, 4), 0.1)).tolist() == [[0.0] * 4] * 3  # no spread: zeros, not noise of rounding
    assert best_of_n.best_of_n(scores, given, [1], seed=0, resamples=10).mean == [0.0]
    for bad in ([1.0, 2.0], [[1.0]], [[1.0, float("inf")]]):
        with pytest.raises(ValueError, match="score"):
            standardized(bad)


def test_sizes_and_the_bound_on_the_kl() -> None:
    assert sizes(2) == [1, 2] and sizes(32) == [1, 2, 4, 8, 16, 32] and sizes(12) == [1, 2, 4, 8, 12]
    assert kl_bound(1) == 0 and kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    # Exact KL of the best of n by a score without ties, over m equally likely answers: below the bound, near it.
    for m, near in ((20, 0.2), (400, 0.01)):
        chosen = np.diff((np.arange(m + 1) / m) ** 8)
        exact = float((chosen * np.log(chosen * m)).sum())
        assert exact <= kl_bound(8) and exact == pytest.approx(kl_bound(8), abs=near)


def test_peak_and_decline() -> None:
    rng = np.random.default_rng(6)
    proxy = rng.normal(size=(60, 64))
    # What the scorer really likes is a middling proxy: it rises, then falls.
    other = standardized(-((proxy - 1.2) ** 2))
    ns = sizes(64)
    curve = best_of_n.best_of_n(proxy, other, ns, seed=0, resamples=200)
    assert 1 < ns[peak(curve)] < 64
    fallen, interval = decline(curve, seed=0, resamples=200)
    assert fallen == pytest.approx(max(curve.mean) - curve.mean[-1]) and interval.low > 0
    rising = best_of_n.best_of_n(proxy, proxy, ns, seed=0, resamples=200)
    assert ns[peak(rising)] == 64 and decline(rising, seed=0, resamples=10)[0] == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        best_of_n.best_of_n([[1.0, 2.0]], [[1.0, 2.0, 3.0]], [1], seed=0)
