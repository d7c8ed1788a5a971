"""compare.json and summary.json as records, of this version and of older ones."""

from __future__ import annotations

from typing import Any

import pytest
from made_run import compare_json, sample_rows, summary_json

from rlhfctl.report.facts.compared import comparison_of, interval, judged, summary_of


@pytest.fixture
def report() -> dict[str, Any]:
    return compare_json(sample_rows(20, 2, 0, 0.5), 20, 2)


def test_every_number_is_taken_over(report: dict[str, Any]) -> None:
    found = comparison_of("compare", report, True)
    assert found.main.win_rate == report["judges"]["gold"]["win_rate"]
    assert found.main.win_rate_ci == tuple(report["judges"]["gold"]["win_rate_ci95"])
    assert found.main.effect_size_ci == (0.4, 0.8) and found.main.length_controlled == 0.7
    assert found.judges["reward_model"].independent is False
    assert [control.kind for control in found.controls] == [row["kind"] for row in report["controls"]]
    assert found.facts["response length"] == (22.0, 20.0)
    assert (found.verdict, found.kl, found.prompts, found.unaltered) == (report["verdict"], 9.5, 20, True)


def test_an_older_file_without_newer_fields_is_read(report: dict[str, Any]) -> None:
    judge = {key: report["judges"]["gold"][key] for key in ("win_rate", "delta", "delta_ci95", "win_rate_ci95")}
    old = {"verdict": "better", "primary_judge": "gold", "judges": {"gold": judge}}
    found = comparison_of("compare", old, None)
    assert found.sentence == "better" and found.controls == [] and found.kl is None and found.facts == {}
    assert found.main.independent is None and found.main.effect_size is None


def test_the_summary_of_seeds_stands_for_the_run(report: dict[str, Any]) -> None:
    summary = summary_json({0: report, 4: report})
    whole, by_seed = summary_of(summary, comparison_of("seed-4/compare", report, True), True)
    assert whole.stage == "summary" and whole.verdict == "better" and whole.prompts == 20
    assert whole.kl == pytest.approx(9.3)
    assert whole.judges["reward_model"].independent is False
    assert [(one.seed, one.kl) for one in by_seed] == [("seed 0", 9.1), ("seed 4", 9.5)]
    alone, _ = summary_of(summary, None, None)
    assert alone.main.independent is None


@pytest.mark.parametrize(
    ("delta", "rate", "expected"),
    [
        ([0.1, 0.3], [0.6, 0.8], "better"),
        ([-0.3, -0.1], [0.2, 0.4], "worse"),
        ([0.1, 0.3], [0.45, 0.8], "undecided"),
        ([-0.1, 0.3], [0.6, 0.8], "undecided"),
        (None, [0.6, 0.8], ""),
    ],
)
def test_a_word_that_is_missing_follows_from_both_intervals(delta: Any, rate: Any, expected: str) -> None:
    assert (
        judged("gold", {"win_rate": 0.7, "delta": 0.2, "delta_ci95": delta, "win_rate_ci95": rate}).verdict == expected
    )


def test_an_interval_is_two_finite_numbers() -> None:
    assert interval([1, 2.5]) == (1.0, 2.5)
    assert (
        interval([1]) is interval(None) is interval("ab") is interval([1, None]) is interval([1, float("inf")]) is None
    )
