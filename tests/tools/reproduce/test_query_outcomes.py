"""The numbers of `rlhfctl reproduce christiano` by hand, and when its statements hold."""

from __future__ import annotations

import math

import pytest
from made_queries import BUDGETS, asked, seed

from rlhfctl.labels.items import make_item
from rlhfctl.tools.reproduce.queries import ACTIVE, RANDOM
from rlhfctl.tools.reproduce.query_outcomes import agreement, area_under_curve, check, describe, finding, labels_needed
from rlhfctl.world import gold


def test_labels_are_interpolated_along_their_logarithm() -> None:
    assert labels_needed(BUDGETS, [0.5, 0.6, 0.8], 0.7) == pytest.approx(40 * math.sqrt(2))
    assert labels_needed(BUDGETS, [0.5, 0.6, 0.8], 0.6) == pytest.approx(40)
    assert labels_needed(BUDGETS, [0.5, 0.6, 0.8], 0.4) == 20  # it is there at once
    assert labels_needed(BUDGETS, [0.5, 0.8, 0.7], 0.8) == pytest.approx(40)  # the first time, though it falls again
    with pytest.raises(ValueError, match="never reached"):
        labels_needed(BUDGETS, [0.5, 0.6, 0.8], 0.9)


def test_orders_are_compared_at_the_accuracy_that_both_reach() -> None:
    better = seed(0, [0.5, 0.6, 0.7], [0.5, 0.7, 0.8])
    assert better.level == 0.7
    assert (better.needed(RANDOM), better.needed(ACTIVE)) == pytest.approx((80, 40))
    assert better.saved == pytest.approx(1) and better.gained == pytest.approx(0.1)
    worse = seed(0, [0.5, 0.7, 0.8], [0.5, 0.6, 0.7])
    assert worse.saved == pytest.approx(-1) and worse.difference(-1) == pytest.approx(-0.1)
    assert seed(0, [0.5, 0.6, 0.7], [0.5, 0.6, 0.7]).saved == 0


def test_accuracy_counts_pairs_of_one_prompt_that_gold_does_not_tie() -> None:
    true = [0.1, 0.2, 0.3, 0.5, 0.5, 0.9, 0.1]
    sizes = [3, 2, 2]
    assert agreement(true, true, sizes) == 1.0
    assert agreement([-one for one in true], true, sizes) == 0.0
    # Of 0.1, 0.2, 0.3 one pair of three is wrong; 0.5, 0.5 does not count; a tied score counts half.
    assert agreement([1.0, 3.0, 2.0, 9.0, 0.0, 4.0, 4.0], true, sizes) == pytest.approx(2.5 / 4)


def test_disagreement_finds_mistakes_where_the_members_differ_on_them() -> None:
    true, sizes = [0.0, 1.0] * 4, [2] * 4
    sure, torn = ([0.0, 2.0], [0.0, 2.0]), ([3.0, 0.0], [0.0, 2.0])  # torn: 3 against -2, so the mean is wrong
    members = [[*sure[one], *torn[one], *torn[one], *sure[one]] for one in (0, 1)]
    assert finding(members, true, sizes) == 1.0
    assert math.isnan(finding([[0.0, 1.0] * 4] * 2, true, sizes))  # no mistake
    same = [[2.0, 0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0]] * 2  # they never differ
    assert finding(same, true, sizes) == 0.5
    assert area_under_curve([2.0, 3.0], [1.0, 2.0]) == (1 + 0.5 + 1 + 1) / 4


def test_what_was_asked_is_measured_by_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gold, "score", lambda prompts, responses: [float(one) for one in responses])
    pairs = [("p", "0", "0.5"), ("q", "0.25", "1"), ("p", "0.5", "0.5 "), ("r", "1", "0.75")]
    items = [make_item(prompt, both, ["a", "a"]) for prompt, *both in pairs]
    answers = {items[0].id: [1, 0], items[1].id: [0, 1], items[3].id: [0, 1]}  # the second one is wrong
    found = describe(items, answers, before={"r"})
    assert found.tied == 0.25 and found.broken == 0.25
    assert found.wrong == pytest.approx(1 / 3)
    assert found.gap == pytest.approx((0.5 + 0.75 + 0.0 + 0.25) / 4)
    assert found.repeated == 0.5  # p again, and r, which an earlier round had


@pytest.mark.parametrize(("active", "held"), [([0.5, 0.7, 0.8], True), ([0.5, 0.55, 0.6], False), (None, None)])
def test_statements_on_labels_and_accuracy(active: list[float] | None, held: bool | None) -> None:
    """Random order: 0.5, 0.6, 0.7 with a little noise. None: three seeds gain and lose."""
    seeds = []
    for number in range(3):
        random = [0.5, 0.6 + 0.002 * number, 0.7 + 0.001 * number]
        mixed = [0.5, *(one + 0.05 * (number - 1) for one in random[1:])]
        seeds.append(seed(number, random, active or mixed))
    found = {one.name: one for one in check(seeds)}
    assert found["fewer labels"].held is held and found["more accuracy"].held is held
    assert found["not noisier"].held is True  # equal shares
    errors = found["finds errors"]
    assert errors.held is True and errors.measures[0].value == pytest.approx(61)  # the last round chooses nothing
    assert found["closer"].held is None  # no difference at all


def test_noisier_and_closer_questions_are_told() -> None:
    random, active = [0.5, 0.6, 0.7], [0.5, 0.6, 0.7]
    noisy, close = asked(tied=0.3), asked(gap=0.1)
    wasted = check([seed(number, random, active, by_active=noisy) for number in range(3)])
    assert {one.name: one.held for one in wasted}["not noisier"] is False
    nearer = check([seed(number, random, active, by_active=close) for number in range(3)])
    assert {one.name: one.held for one in nearer}["closer"] is True
