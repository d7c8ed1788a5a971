"""scaling.py: planted curves that are found, SciPy as oracle, peaks by search, and intervals over seeds that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import ttest_1samp

from rlhfctl.stats.scaling import Form, fit, over_seeds

CURVES = {
    "best_of_n": lambda d, a, b: d * (a - b * d),
    "rl": lambda d, a, b: d * (a - b * np.log(d)),
}
DISTANCE = np.linspace(0.2, 4.0, 25)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_planted_curve_is_found(form: Form) -> None:
    found = fit(form, DISTANCE, CURVES[form](DISTANCE, 0.9, 0.2))
    assert (found.alpha, found.beta, found.r_squared) == pytest.approx((0.9, 0.2, 1.0))
    assert found.at(DISTANCE) == pytest.approx(CURVES[form](DISTANCE, 0.9, 0.2))
    assert found.at([0.0]) == pytest.approx([0.0])


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_with_noise_it_is_scipys_fit(form: Form) -> None:
    noisy = CURVES[form](DISTANCE, 0.9, 0.2) + np.random.default_rng(0).normal(0, 0.1, size=DISTANCE.size)
    oracle, _ = curve_fit(CURVES[form], DISTANCE, noisy)
    found = fit(form, DISTANCE, noisy)
    assert (found.alpha, found.beta) == pytest.approx(tuple(oracle), abs=1e-6)
    assert 0 < found.r_squared < 1


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_the_peak_is_where_a_search_finds_it(form: Form) -> None:
    fine = np.linspace(0.01, 60, 200_000)
    found = fit(form, DISTANCE, CURVES[form](DISTANCE, 0.9, 0.35))
    assert found.peak == pytest.approx(fine[np.argmax(found.at(fine))], abs=1e-3)
    rising = fit(form, DISTANCE, CURVES[form](DISTANCE, 0.9, -0.1))
    assert rising.peak is None


def test_what_is_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="three points"):
        fit("rl", [1.0, 2.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="above 0"):
        fit("rl", [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    assert math.isnan(fit("rl", [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).r_squared)
    with pytest.raises(ValueError, match="at least two"):
        over_seeds([1.0])


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.3, 0.5, 0.1, 0.7, 0.4]
    mean, interval = over_seeds(values)
    oracle = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean == pytest.approx(0.4)
    assert (interval.low, interval.high) == pytest.approx((oracle.low, oracle.high))


def test_the_interval_over_seeds_covers_where_a_bootstrap_does_not() -> None:
    rng = np.random.default_rng(0)
    student = bootstrap = 0
    for _ in range(1_000):
        values = rng.normal(1.0, 0.5, size=5)
        _, interval = over_seeds(values.tolist())
        student += interval.low <= 1.0 <= interval.high
        means = values[rng.integers(0, 5, size=(400, 5))].mean(axis=1)
        bootstrap += np.quantile(means, 0.025) <= 1.0 <= np.quantile(means, 0.975)
    assert 0.93 <= student / 1_000 <= 0.97
    assert bootstrap / 1_000 < 0.87
