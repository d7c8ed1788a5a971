"""Repetition within responses, against numbers computed by hand."""

from __future__ import annotations

import pytest

from rlhfctl.stats.repetition import repetition


@pytest.mark.parametrize(
    ("responses", "n", "expected"),
    [
        ([[1, 2, 3, 4]], 2, 0.0),
        ([[1, 2, 1, 2, 1]], 2, 0.5),  # (1 2) and (2 1), each twice
        ([[7, 7, 7, 7]], 2, 2 / 3),
        ([[7, 7, 7, 7], [1, 2, 3, 4]], 2, 1 / 3),
        ([[7, 7, 7, 7], [1]], 2, 1 / 3),  # too short to repeat anything
        ([["a", "b", "a"]], 1, 1 / 3),
        ([[1, 2, 3, 1, 2, 3]], 3, 1 / 4),
    ],
)
def test_by_hand(responses: list[list[int | str]], n: int, expected: float) -> None:
    assert repetition(responses, n) == pytest.approx(expected)


def test_two_responses_alike_do_not_repeat_themselves() -> None:
    assert repetition([[1, 2, 3], [1, 2, 3]]) == 0.0


def test_what_cannot_be_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        repetition([[1, 2]], 0)
    with pytest.raises(ValueError, match="no response"):
        repetition([])
