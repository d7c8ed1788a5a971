"""effect.py against numbers worked out by hand, SciPy's paired t, and a coverage simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from rlhfctl.stats.effect import paired_effect_size, reference_deviations, standard_error


def test_by_hand() -> None:
    # differences 1, 2, 3: mean 2, standard deviation 1
    found = paired_effect_size([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], seed=0)
    assert found is not None and found.value == pytest.approx(2.0)
    # reference 1, 2, 3 has standard deviation 1 too
    assert reference_deviations([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(2.0)


def test_the_standard_error_of_a_mean_by_hand() -> None:
    assert standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx(np.sqrt(14 / 3) / 2)  # squares 4, 1, 0, 9 over 3
    assert standard_error([7.0]) == 0.0


def test_it_is_the_t_statistic_over_the_root_of_n() -> None:
    rng = np.random.default_rng(3)
    policy, reference = rng.normal(0.4, 1.0, size=57), rng.normal(size=57)
    found = paired_effect_size(policy, reference, seed=0)
    assert found is not None
    assert found.value == pytest.approx(ttest_rel(policy, reference).statistic / np.sqrt(57))


@pytest.mark.parametrize("policy", [[1.0, 2.0, 3.0], [1.5, 2.5, 3.5], [1.0]])
def test_without_spread_there_is_none(policy: list[float]) -> None:
    assert paired_effect_size(policy, [1.0, 2.0, 3.0][: len(policy)], seed=0) is None
    assert reference_deviations([3.0, 4.0], [1.0, 1.0]) is None


def test_swapped_sides_give_the_negative() -> None:
    rng = np.random.default_rng(4)
    policy, reference = rng.normal(0.4, 1.0, size=80), rng.normal(size=80)
    one, other = (paired_effect_size(*sides, seed=1) for sides in ((policy, reference), (reference, policy)))
    assert one is not None and other is not None
    assert other.value == pytest.approx(-one.value)
    assert (other.ci95.low, other.ci95.high) == pytest.approx((-one.ci95.high, -one.ci95.low))


def covered(draws: int, samples: int) -> float:
    rng = np.random.default_rng(12)
    hits = 0
    for draw in range(draws):
        policy = rng.normal(0.5, 1.0, size=150)  # d_z = 0.5 / sqrt(1 + 1)
        found = paired_effect_size(policy, rng.normal(size=150), seed=draw, samples=samples)
        assert found is not None
        hits += found.ci95.low <= 0.5 / np.sqrt(2) <= found.ci95.high
    return hits / draws


def test_intervals_cover() -> None:
    assert 0.91 <= covered(300, 400) <= 0.98


@pytest.mark.slow
def test_intervals_cover_in_a_thousand_draws() -> None:
    assert 0.93 <= covered(1_000, 2_000) <= 0.965
