"""The verdict over all controls: the word for every combination, and the sentence that a reader sees first."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rlhfctl.stats.paired import Verdict
from rlhfctl.verdict import BEST_OF_N, COLDER, EQUAL, MATCHED, basis, overall, sentence

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


def test_worse_is_told_from_the_references_side() -> None:
    found = sentence(report("worse", (0.3, "worse"), row(EQUAL, 0.0, 0.2, "worse")))
    assert found.startswith("worse: gold prefers the reference on 80% of 300 prompts when both are greedy")


def test_the_basis_names_what_the_word_rests_on() -> None:
    rows = [row(EQUAL, 0.8, 0.5, "undecided", "both at 0.8"), row(BEST_OF_N, 1.0, 0.4, "worse", "best of 4")]
    assert basis(rows) == ["main", "both at 0.8"]
