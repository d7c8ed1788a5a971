"""What a judge's answers amount to: position bias, agreement, tokens and cost, by hand."""

from __future__ import annotations

import random
from statistics import fmean

import numpy
import pytest

from rlhfctl.judging.cache import Answer
from rlhfctl.judging.judge import Choice, Judged, Judgement, Reply
from rlhfctl.judging.summary import agreement, doubts, place, totals
from rlhfctl.recipe.sections.endpoint import Endpoint

PRICED = Endpoint(base_url="http://a/v1", model="m-1", price_per_million_input=2.0, price_per_million_output=8.0)


def pair(first: Choice | None, second: Choice | None) -> Judgement:
    return Judgement((Reply(first), Reply(second)))


def test_position_bias_by_hand() -> None:
    judged = [
        (0, pair("A", "A")),  # 1
        (0, pair("A", "B")),  # 0
        (1, pair("A", "tie")),  # 1/2
        (2, pair("B", "A")),  # 0
        (3, Judgement(None)),  # nobody was asked
        (4, pair("A", None)),  # failed
    ]
    found = place(judged, samples=2000, seed=0)
    assert found["position_bias"] == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert found["consistent"] == 0.5
    low, high = found["position_bias_ci95"]
    assert 0.0 <= low <= found["position_bias"] <= high <= 0.5


@pytest.mark.parametrize(("choice", "bias"), [("A", 1.0), ("B", -1.0), ("tie", 0.0)])
def test_a_judge_that_always_says_the_same(choice: Choice, bias: float) -> None:
    found = place([(n, pair(choice, choice)) for n in range(9)], samples=500, seed=0)
    assert found["position_bias"] == bias and found["position_bias_ci95"] == [bias, bias]
    assert fmean(value for n in range(9) if (value := pair(choice, choice).value) is not None) == 0.5


def test_nothing_asked_is_nothing_known() -> None:
    unknown = {"position_bias": None, "position_bias_ci95": None, "consistent": None}
    assert place([(0, Judgement(None)), (1, pair(None, "A"))], samples=500, seed=0) == unknown


def test_the_interval_covers_the_true_bias() -> None:
    """A judge with a planted bias of 0.2: of 200 samples of 60 prompts the interval holds it in about 95%."""
    rng, covered = random.Random(0), 0
    for trial in range(200):
        judged: list[tuple[int, Judgement]] = []
        for prompt in range(60):
            for _ in range(2):
                first, second = ("A" if rng.random() < 0.6 else "B" for _ in range(2))
                judged.append((prompt, pair(first, second)))  # type: ignore[arg-type]
        low, high = place(judged, samples=400, seed=trial)["position_bias_ci95"]
        covered += low <= 0.2 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_agreement_by_hand() -> None:
    values = [1.0, 0.75, 0.0, 0.5, None, 0.25]
    gold = [0.3, -0.1, -2.0, 5.0, 1.0, 0.0]  # same, other, same, we tie, we failed, gold ties
    found = agreement(values, {"gold": gold, "flat": [0.0] * 6})
    assert found == {"agreement": {"gold": 2 / 3, "flat": None}, "agreement_pairs": {"gold": 3, "flat": 0}}
    shuffled = numpy.random.default_rng(0).permutation(6)
    assert agreement([values[i] for i in shuffled], {"gold": [gold[i] for i in shuffled]})["agreement"]["gold"] == 2 / 3


def judged_of(*replies: Reply) -> Judged:
    pairs = [Judgement((one, other)) for one, other in zip(replies[::2], replies[1::2], strict=True)]
    return Judged({"main": [*pairs, Judgement(None)]}, calls=3, replies=replies)


def reply(choice: Choice | None, tokens: tuple[int | None, int | None], model: str | None = "m-1-2026") -> Reply:
    failure = None if choice else "no answer in the asked form"
    return Reply(choice, failure, "", Answer("x", "stop", model, 1, *tokens), cached=choice == "B")


def test_totals_by_hand() -> None:
    judged = judged_of(reply("A", (100, 5)), reply("B", (200, 10)), reply("A", (300, 5)), reply(None, (400, 20)))
    assert totals(PRICED, judged) == {
        "model": "m-1",
        "answered_by": ["m-1-2026"],
        "comparisons": ["main"],
        "pairs": 3,
        "identical": 1,
        "failed": 1,
        "failures": {"no answer in the asked form": 1},
        "calls": 3,
        "cached": 1,
        "input_tokens": 1000,
        "output_tokens": 40,
        "cost": pytest.approx((1000 * 2 + 40 * 8) / 1e6),
    }
    assert totals(Endpoint(base_url="http://a/v1", model="m-1"), judged)["cost"] is None


def test_a_server_that_does_not_count_tokens_leaves_the_cost_unknown() -> None:
    found = totals(PRICED, judged_of(reply("A", (100, 5)), reply("B", (None, 10))))
    assert (found["input_tokens"], found["output_tokens"], found["cost"]) == (None, 15, None)
    refused = judged_of(reply("A", (100, 5)), Reply(None, "refused with status 400", "too long"))
    assert totals(PRICED, refused)["input_tokens"] == 100  # a refused question costs nothing


def test_another_model_than_the_one_that_was_asked_is_said() -> None:
    assert doubts(PRICED, judged_of(reply("A", (1, 1), "M-1-2026"), reply("A", (1, 1), None))) == []
    (warning,) = doubts(PRICED, judged_of(reply("A", (1, 1), "tiny"), reply("B", (1, 1), "tiny")))
    assert warning == "m-1 was asked, and the server says that tiny answered: these judged"
    (several,) = doubts(PRICED, judged_of(reply("A", (1, 1), "m-1-a"), reply("B", (1, 1), "m-1-b")))
    assert several == "several models answered as m-1: m-1-a, m-1-b"
