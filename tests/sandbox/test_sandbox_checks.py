"""The tests of a row as checks: what is expected stays outside wherever it is a literal."""

from __future__ import annotations

import pytest

from rlhfctl.errors import RewardFailed
from rlhfctl.sandbox.checks import Check, checks_of
from rlhfctl.sandbox.values import as_text


def test_an_assertion_of_a_literal_is_compared_outside() -> None:
    (check,) = checks_of("assert f(2, [1]) == (4, 'a')")
    assert check == Check("value", "f(2, [1])", as_text((4, "a")))
    assert check.holds(as_text((4.0, "a"))) and not check.holds(as_text([4, "a"]))


def test_lines_and_lists_of_assertions_are_one_check_each() -> None:
    text = "assert f(1) == 1\nassert f(2) == 4, 'square'"
    assert checks_of(text) == checks_of(["assert f(1) == 1", "assert f(2) == 4"])
    assert [check.kind for check in checks_of(text)] == ["value", "value"]


@pytest.mark.parametrize("source", ["f(1)", "f(1) < 2", "f(1) == g(1)", "1 < f(1) < 3", "abs(f(1) - 1.5) < 0.5"])
def test_other_assertions_are_asked_for_their_truth(source: str) -> None:
    (check,) = checks_of(f"assert {source}")
    assert (check.kind, check.source, check.expected) == ("truth", source, as_text(True))


def test_other_python_is_executed_whole() -> None:
    humaneval = "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)"
    assert checks_of(humaneval) == (Check("run", humaneval, "passed"),)


def test_printed_text_is_compared_without_white_space_at_its_ends() -> None:
    (check,) = checks_of([{"input": "3", "output": "1 \n2\n\n"}])
    assert check.holds("1\n2") and check.holds("1  \n2 \n") and not check.holds("1 2") and not check.holds("1\n 2")


@pytest.mark.parametrize(
    "tests", [None, 3, [], "", "# nothing", "assert", [1], [{"input": "1"}], {"in": "", "out": ""}]
)
def test_what_are_no_tests_is_named_with_the_form_that_they_need(tests: object) -> None:
    with pytest.raises(RewardFailed, match=r"the tests of a row .*\n.*fix: give each row its tests"):
        checks_of(tests)
