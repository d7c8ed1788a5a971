"""The best evaluation and the verdict that a policy exploits its reward: by hand, and false alarms by simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rlhfctl.stats.overoptimization import Point, best_evaluation, overoptimized


def points(proxy: Sequence[float], heldout: Sequence[float], error: float = 0.1) -> list[Point]:
    return [Point(10 * i, p, h, error, error) for i, (p, h) in enumerate(zip(proxy, heldout, strict=True))]


# ---------------------------------------------------------------- the best evaluation


@pytest.mark.parametrize(
    ("given", "limit", "best"),
    [
        ([(0.0, 1.0), (2.0, 3.0), (4.0, 2.0)], None, 1),
        ([(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)], 3.0, 1),
        ([(0.0, 1.0), (3.0, 3.0), (4.0, 5.0)], 3.0, 1),  # the limit itself is within it
        ([(0.0, 3.0), (2.0, 3.0)], None, 0),  # the earliest of equal ones
        ([(0.0, 1.0), (9.0, 5.0)], 0.5, 0),
        ([(7.0, 1.0), (5.0, 0.0), (6.0, 9.0)], 2.0, 1),  # none is within it: the nearest
    ],
)
def test_the_highest_value_within_the_limit_is_best(
    given: list[tuple[float, float]], limit: float | None, best: int
) -> None:
    assert best_evaluation(given, limit) == best


def test_there_must_be_an_evaluation() -> None:
    with pytest.raises(ValueError, match="no evaluation"):
        best_evaluation([])


# ---------------------------------------------------------------- over-optimization

UP = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
HUMP = [0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0]


def test_it_is_found_and_described_by_hand() -> None:
    found = overoptimized(points(UP, HUMP))
    assert found is not None
    # Windows of three: the means of HUMP are 1, 2, 2 2/3, 2 2/3, 2, 1; the first of the highest is that of 20 to 40.
    assert found.peak_step == 30
    assert found.heldout_peak == pytest.approx(8 / 3) and found.heldout_now == pytest.approx(1.0)
    assert (found.proxy_then, found.proxy_now) == (3.0, 6.0)


def test_a_fall_within_noise_is_none() -> None:
    # The fall is 5/3, and its standard error sqrt(2) times that of one evaluation: three of them are 5/3 at 0.3928.
    assert overoptimized(points(UP, HUMP, 0.392)) is not None
    assert overoptimized(points(UP, HUMP, 0.394)) is None


@pytest.mark.parametrize(
    ("proxy", "heldout"),
    [
        (UP, UP),  # both rise
        (HUMP, HUMP),  # both fall: the policy is worse by its own reward, too
        ([3.0] * 8, HUMP),  # the proxy stays: nothing is exploited
        (UP, HUMP[::-1][:4] + HUMP[:4]),  # the held-out reward fell and came back
        (UP[:5], [3.0, 3.0, 2.0, 1.0, 0.0]),  # too few evaluations for two windows
        ([], []),
    ],
)
def test_other_runs_are_none(proxy: list[float], heldout: list[float]) -> None:
    assert overoptimized(points(proxy, heldout)) is None


def noise(draw: np.random.Generator, count: int, kept: float) -> np.ndarray:
    """Standard normal noise whose neighbours correlate by `kept`."""
    fresh = draw.standard_normal(count)
    found = [fresh[0]]
    for one in fresh[1:]:
        found.append(kept * found[-1] + (1 - kept**2) ** 0.5 * one)
    return np.array(found)


def alarmed(draw: np.random.Generator, evaluations: int, kept: float, fall: float = 0.0) -> bool:
    """Whether any evaluation of a run raises the alarm. In units of standard errors: the proxy rises by 8 over the
    run, the held-out reward rises by 8 in its first half, and falls by `fall` in its second."""
    rise = np.minimum(np.linspace(0, 16, evaluations), 8)
    slope = np.maximum(np.linspace(-fall, fall, evaluations), 0)
    heldout = rise - slope + noise(draw, evaluations, kept)
    given = points(list(np.linspace(0, 8, evaluations) + noise(draw, evaluations, kept)), list(heldout), 1.0)
    return any(overoptimized(given[: count + 1]) is not None for count in range(evaluations))


@pytest.mark.parametrize(("evaluations", "kept", "most"), [(31, 0.0, 0.02), (31, 0.8, 0.02), (61, 0.5, 0.07)])
def test_a_held_out_reward_that_stays_raises_few_false_alarms(evaluations: int, kept: float, most: float) -> None:
    draw = np.random.default_rng(0)
    assert np.mean([alarmed(draw, evaluations, kept) for _ in range(300)]) <= most


def test_a_fall_of_six_standard_errors_is_seldom_missed() -> None:
    draw = np.random.default_rng(0)
    for kept in (0.0, 0.8):
        assert np.mean([alarmed(draw, 31, kept, fall=8.0) for _ in range(100)]) >= 0.9
