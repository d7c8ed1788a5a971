"""A statement holds where it was planted, fails where the opposite was, and is undecided where noise hides it."""

from __future__ import annotations

import pytest
from made_seeds import planted

from rlhfctl.stats.resampling import Interval
from rlhfctl.tools.reproduce.statements import _side, _within, check


def outcomes(**changes: float) -> dict[str, bool | None]:
    return {one.says: one.holds for one in check([planted(seed, **changes) for seed in range(5)])}


def test_what_is_planted_holds() -> None:
    assert set(outcomes().values()) == {True}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"penalty": 0.4}, "a KL penalty does not change gold"),
        ({"small": -0.4}, "a smaller policy gains more"),
        ({"worst": -0.3}, "an ensemble's worst over-optimizes less"),
        ({"noise": 3.0}, "the two forms describe gold"),
    ],
)
def test_the_opposite_does_not_hold(changes: dict[str, float], says: str) -> None:
    found = outcomes(**changes)
    (outcome,) = [holds for sentence, holds in found.items() if sentence.startswith(says)]
    assert outcome is False


def test_noise_leaves_a_statement_undecided() -> None:
    found = outcomes(small=0.0, noise=0.5)
    (outcome,) = [holds for sentence, holds in found.items() if sentence.startswith("a smaller policy")]
    assert outcome is None


def test_sides_of_a_bound() -> None:
    assert [_side(Interval(*ends), 1.0) for ends in ((1.1, 2.0), (0.0, 0.9), (0.9, 1.1))] == [True, False, None]
    assert [_within(Interval(*ends), 0.2) for ends in ((-0.1, 0.1), (0.3, 0.4), (-0.5, -0.3), (0.1, 0.3))] == [
        True,
        False,
        False,
        None,
    ]
