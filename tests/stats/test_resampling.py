"""resampling.py against hand-computed numbers, SciPy as oracle, and a coverage simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from rlhfctl.stats import resampling
from rlhfctl.stats.resampling import Interval, bootstrap_mean_ci, percentile_interval, resample_counts


def test_the_middle_of_the_values() -> None:
    found = percentile_interval(np.arange(101.0), confidence=0.9)
    assert (found.low, found.high) == pytest.approx((5.0, 95.0))
    with pytest.raises(ValueError, match="confidence is 1"):
        percentile_interval(np.arange(3.0), confidence=1.0)


def test_two_values_by_hand() -> None:
    # resample means of (0, 1): 0 with 1/4, 0.5 with 1/2, 1 with 1/4
    assert bootstrap_mean_ci([0.0, 1.0], seed=0) == Interval(0.0, 1.0)
    assert bootstrap_mean_ci([0.0, 1.0], confidence=0.4, seed=0) == Interval(0.5, 0.5)


def test_agrees_with_scipy_percentile_bootstrap() -> None:
    values = np.random.default_rng(5).gamma(2.0, size=80)
    ours = bootstrap_mean_ci(values, confidence=0.9, seed=1, samples=20_000)
    oracle = bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.low == pytest.approx(oracle.low, abs=0.02)
    assert ours.high == pytest.approx(oracle.high, abs=0.02)


@pytest.mark.parametrize("values", [[0.1], [0.1] * 7, [-1e9] * 3])
def test_no_spread_gives_an_interval_of_width_zero_at_the_value(values: list[float]) -> None:
    assert bootstrap_mean_ci(values, seed=3) == Interval(values[0], values[0])


def test_seed_decides_and_chunks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean_ci(values, seed=7)
    assert bootstrap_mean_ci(values, seed=7) == whole
    assert bootstrap_mean_ci(values, seed=8) != whole
    monkeypatch.setattr(resampling, "_CHUNK_CELLS", 333)
    in_chunks = bootstrap_mean_ci(values, seed=7)
    assert (in_chunks.low, in_chunks.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_many_prompts_stay_within_memory() -> None:
    sizes = [chunk.size for chunk in resample_counts(5000, 500, seed=0)]
    assert max(sizes) <= resampling._CHUNK_CELLS
    assert sum(sizes) == 5000 * 500
    assert all((chunk.sum(axis=1) == 5000).all() for chunk in resample_counts(5000, 300, seed=1))


def test_coverage_is_near_the_stated_confidence() -> None:
    rng = np.random.default_rng(11)
    hits = {0.95: 0, 0.6: 0}
    trials = 400
    for trial in range(trials):
        values = rng.normal(0.3, 1.0, size=60)
        for confidence in hits:
            interval = bootstrap_mean_ci(values, confidence=confidence, samples=600, seed=trial)
            hits[confidence] += interval.low <= 0.3 <= interval.high
    assert 0.90 <= hits[0.95] / trials <= 0.985
    assert 0.52 <= hits[0.6] / trials <= 0.68
