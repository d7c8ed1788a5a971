"""A statement holds where it was planted, fails where the opposite was, and cannot be told where noise hides it."""

from __future__ import annotations

import pytest
from made_seeds import planted

from rlhfctl.stats.resampling import Interval
from rlhfctl.tools.reproduce.statements import Statement, above, check, within


def outcomes(**changes: float) -> dict[str, Statement]:
    return {one.name: one for one in check([planted(seed, **changes) for seed in range(5)])}


def test_what_is_planted_holds() -> None:
    found = outcomes()
    assert {name: one.held for name, one in found.items()} == dict.fromkeys(found, True)
    assert [name for name in found if name.startswith("Gao")] == [f"Gao {number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("changes", "name", "measure"),
    [
        ({"noise": 3.0}, "Gao 1", "lowest R squared of a seed's fits, RL"),
        ({"best_of_n": 0.3}, "Gao 2", "gold at the same distance"),
        ({"rise": -0.2}, "Gao 3", "highest gold of RL, rise"),
        ({"small": -0.4}, "Gao 4", "highest gold, smaller"),
        ({"penalty": 0.6}, "Gao 5", "gold at the same distance"),
        ({"penalty_proxy": -0.5}, "Gao 5", "proxy score at the same distance"),
        ({"worst": -0.3}, "Coste 1", "gold at the largest n"),
    ],
)
def test_the_opposite_does_not_hold(changes: dict[str, float], name: str, measure: str) -> None:
    found = outcomes(**changes)[name]
    (one,) = [one for one in found.measures if one.what.startswith(measure)]
    assert one.held is False, one
    assert found.held is False


def test_a_curve_that_only_rises_is_no_over_optimization() -> None:
    assert outcomes(best_of_n=5.0)["premise"].held is False


def test_noise_hides_a_statement() -> None:
    assert outcomes(small=0.0, noise=0.5)["Gao 4"].held is None


def test_sides_of_a_bound() -> None:
    _, higher = above(1.0)
    assert [higher(Interval(*ends)) for ends in ((1.1, 2.0), (0.0, 0.9), (0.9, 1.1))] == [True, False, None]
    _, inside = within(0.2)
    assert [inside(Interval(*ends)) for ends in ((-0.1, 0.1), (0.3, 0.4), (-0.5, -0.3), (0.1, 0.3))] == [
        True,
        False,
        False,
        None,
    ]
