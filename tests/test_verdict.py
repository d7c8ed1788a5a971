"""The verdict over all controls: the word for every combination, and the sentence that a reader sees first."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rlhfctl.stats.paired import Verdict
from rlhfctl.verdict import BEST_OF_N, COLDER, EQUAL, MATCHED, basis, length_warnings, overall, sentence

RESULTS: tuple[Verdict, ...] = ("better", "undecided", "worse")


@pytest.mark.parametrize(
    ("main", "fair", "colder", "word"),
    [
        ("better", ["better", "better"], ["better", "undecided"], "better"),
        ("better", ["better", "better"], ["better", "worse"], "mixed"),
        ("better", ["better", "undecided"], ["better"], "mixed"),
        ("better", ["worse", "worse"], ["worse"], "mixed"),
        ("undecided", ["better", "better"], ["undecided"], "mixed"),
        ("worse", ["worse", "undecided"], ["worse"], "worse"),
        ("worse", ["better"], ["worse"], "mixed"),
        ("undecided", ["undecided"], ["undecided"], "undecided"),
        ("undecided", ["undecided"], ["worse"], "mixed"),
        ("undecided", ["worse"], ["undecided"], "mixed"),
        ("better", [], [], "better"),
        ("worse", [], [], "worse"),
        ("undecided", [], [], "undecided"),
    ],
)
def test_the_word_for_a_combination(main: Verdict, fair: list[Verdict], colder: list[Verdict], word: str) -> None:
    assert overall(main, fair, colder) == word


def test_better_needs_every_fair_control_and_no_colder_reference_that_wins() -> None:
    for main, one, other, cold in itertools.product(RESULTS, repeat=4):
        found = overall(main, [one, other], [cold])
        assert (found == "better") is ([main, one, other] == ["better"] * 3 and cold != "worse")
        if found == "worse":
            assert main == "worse" and "better" not in (one, other)


def values(rate: float, verdict: str) -> dict[str, Any]:
    return {"win_rate": rate, "win_rate_ci95": [rate - 0.05, rate + 0.05], "delta": rate - 0.5, "verdict": verdict}


def row(kind: str, temperature: float, rate: float, verdict: str, name: str = "") -> dict[str, Any]:
    return {"kind": kind, "name": name, "temperature": temperature, "judges": {"gold": values(rate, verdict)}}


def report(word: str, main: tuple[float, str], *controls: dict[str, Any], temperature: float | None = 1.0) -> Any:
    judges = {"gold": values(*main)}
    return {
        "verdict": word,
        "primary_judge": "gold",
        "prompts": 300,
        "temperature": temperature,
        "judges": judges,
        "controls": list(controls),
    }


def test_the_strongest_fair_control_comes_first() -> None:
    found = sentence(
        report(
            "better",
            (0.85, "better"),
            row(EQUAL, 0.8, 0.8, "better"),
            row(EQUAL, 0.0, 0.78, "better"),
            row(MATCHED, 0.74, 0.7, "better"),
            row(COLDER, 0.8, 0.6, "undecided"),
        )
    )
    assert found == (
        "better: gold prefers the policy on 70% of 300 prompts at matched entropy (reference at temperature 0.74) "
        "(95% interval 65% to 75%), its strongest fair control; 85% at temperature 1, 80% at temperature 0.8, "
        "78% when both are greedy"
    )


def test_a_gain_that_a_lower_temperature_gives_too_is_not_called_better() -> None:
    found = sentence(
        report(
            "mixed",
            (0.85, "better"),
            row(EQUAL, 0.6, 0.7, "better"),
            row(EQUAL, 0.0, 0.39, "worse"),
            row(MATCHED, 0.7, 0.52, "undecided"),
            row(COLDER, 0.8, 0.63, "better"),
            row(COLDER, 0.6, 0.52, "undecided"),
            row(COLDER, 0.0, 0.41, "worse"),
        )
    )
    assert found == (
        "mixed: better at temperature 1 (85%) and at temperature 0.6 (70%), by gold; "
        "no better at matched entropy (reference at temperature 0.7) (52%); worse when both are greedy (39%); "
        "worse than the reference when it is greedy (41%); no better than the reference at temperature 0.6"
    )


def test_without_controls_the_sentence_says_so() -> None:
    assert sentence(report("better", (0.85, "better"))).endswith(
        "at temperature 1 (95% interval 80% to 90%); no controls were run: a lower temperature alone may explain it"
    )
    made_elsewhere = sentence(report("undecided", (0.5, "undecided"), temperature=None))
    assert "samples made elsewhere cannot be drawn again" in made_elsewhere


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (1_234, "; if wins and losses stay in proportion, about 1,300 prompts would settle it"),
        (301, "; if wins and losses stay in proportion, about 310 prompts would settle it"),
        (None, "; wins and losses are too even for any number of prompts to settle it"),
        (300, "; the sign test finds a difference (p 0.0012), the mean of the scores does not"),
    ],
)
def test_an_undecided_sentence_says_how_many_prompts_would_settle_it(needed: int | None, said: str) -> None:
    for controls in ([], [row(EQUAL, 0.0, 0.5, "undecided")]):
        found = report("undecided", (0.52, "undecided"), *controls)
        before = sentence(found)  # of a comparison before the number was there
        found["judges"]["gold"] |= {"prompts_to_settle": needed, "p_value": 0.00123}
        assert said in sentence(found) and sentence(found).replace(said, "") == before
    better = report("better", (0.8, "better"))
    better["judges"]["gold"]["prompts_to_settle"] = 40
    assert "prompts would" not in sentence(better)


def test_a_win_that_length_explains_is_a_warning_in_words() -> None:
    found = report("better", (0.62, "better"))
    assert list(length_warnings(found)) == []  # of a comparison before the number was there
    for controlled, warned in ((None, False), (0.55, False), (0.5, False), (0.41, True)):
        found["judges"]["gold"]["length_controlled_win_rate"] = controlled
        assert bool(list(length_warnings(found))) is warned
    assert list(length_warnings(found)) == [
        "gold prefers the policy on 62% of the prompts, but at equal length the reference on 59%: the length of the "
        "responses may be why it wins"
    ]
    lost = report("worse", (0.38, "worse"))
    lost["judges"]["gold"]["length_controlled_win_rate"] = 0.59
    assert next(length_warnings(lost)).startswith("gold prefers the reference on 62% of the prompts, but at equal")


def test_worse_is_told_from_the_references_side() -> None:
    found = sentence(report("worse", (0.3, "worse"), row(EQUAL, 0.0, 0.2, "worse")))
    assert found.startswith("worse: gold prefers the reference on 80% of 300 prompts when both are greedy")


def test_the_basis_names_what_the_word_rests_on() -> None:
    rows = [row(EQUAL, 0.8, 0.5, "undecided", "both at 0.8"), row(BEST_OF_N, 1.0, 0.4, "worse", "best of 4")]
    assert basis(rows) == ["main", "both at 0.8"]
