"""Values as text: equal texts for equal values, as Python compares them, and no way to pretend."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, namedtuple
from fractions import Fraction

import pytest

from rlhfctl.sandbox.values import LONGEST, TooLong, as_text

VALUES = [
    None, 0, 1, -1, 10**50, 1.0, 1.5, -0.0, float("inf"), True, False, "", "1", "a'b", b"1", [], [1], [1.0], (1,), (),
    {1}, frozenset({1}), {1: 2}, {}, set(), {"a": [1, (2, 3)]}, [[1], [2]], [[1, 2]], "[1]", "n1", {1, 2.0, "x"},
]  # fmt: skip


def test_texts_are_equal_exactly_where_values_are() -> None:
    for one, other in itertools.product(VALUES, repeat=2):
        assert (as_text(one) == as_text(other)) == (one == other), (one, other)


def test_subclasses_count_by_what_they_hold() -> None:
    class Liar(list):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter([7])

        def __repr__(self) -> str:
            return "[7]"

    assert as_text(Liar([1])) == as_text([1])
    assert as_text(OrderedDict(b=1, a=2)) == as_text({"a": 2, "b": 1})
    assert as_text(Counter("aa")) == as_text({"a": 2})
    assert as_text(namedtuple("Pair", "a b")(1, 2)) == as_text((1, 2))


def test_other_types_equal_nothing_that_can_be_expected() -> None:
    texts = {as_text(one) for one in VALUES}
    assert not {as_text(one) for one in (Fraction(1), object(), range(3), len, type)} & texts


def test_long_and_endless_values_are_refused() -> None:
    with pytest.raises(TooLong):
        as_text("x" * (LONGEST + 1))
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        as_text(endless)
