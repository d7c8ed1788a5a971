"""Figures of the comparison: every row is there, in order, and each specification is Vega-Lite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_run import make_run, make_seeds
from schema import faults, rows_of

from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.measures import by_prompt, length_effect, prompt_groups, score_bins
from rlhfctl.report.facts.records import Run
from rlhfctl.report.figures import verdict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gather(make_run(tmp_path_factory.mktemp("figures") / "one", prompts=40))


def test_the_primary_judge_comes_first_and_a_star_marks_what_was_trained_on(run: Run) -> None:
    assert run.comparison is not None
    figure = verdict.win_rates(run.comparison)
    rows = rows_of(figure.spec)
    assert [row["name"] for row in rows][:3] == ["gold", "reward_model *", "both greedy"]
    assert len(rows) == 2 + 4
    assert rows[0]["rate"] == run.comparison.main.win_rate
    assert (rows[0]["low"], rows[0]["high"]) == run.comparison.main.win_rate_ci
    assert rows[0]["result"] == f"policy {run.comparison.main.verdict}"
    assert "A star" in figure.caption and faults(figure.drawn()) == []


def test_a_judge_without_an_interval_is_a_point(run: Run) -> None:
    assert run.comparison is not None
    bare = replace(run.comparison.main, win_rate_ci=None, verdict="")
    figure = verdict.win_rates(replace(run.comparison, judges={"gold": bare}, controls=[]))
    (row,) = rows_of(figure.spec)
    assert row["low"] == row["rate"] == row["high"] and row["result"] == "undecided"


def test_each_seed_has_a_row(tmp_path: Path) -> None:
    figure = verdict.seeds(gather(make_seeds(tmp_path / "seeds")).by_seed)
    assert [row["name"] for row in rows_of(figure.spec)] == ["seed 0", "seed 1", "seed 2"]
    assert faults(figure.drawn()) == []


def test_scores_of_both_sides_with_their_means(run: Run) -> None:
    figure = verdict.distribution(score_bins(run.pairs, "gold"), "gold", by_prompt(run.pairs, "gold"))
    rows = rows_of(figure.spec)
    for side in ("policy", "reference"):
        assert sum(row["share"] for row in rows if row["side"] == side) == pytest.approx(1)
    assert run.comparison is not None
    means = {row["side"]: row["mean"] for row in rows_of(figure.spec, layer=1)}
    assert means["policy"] == pytest.approx(run.comparison.main.policy_mean)
    assert means["reference"] == pytest.approx(run.comparison.main.reference_mean)
    assert faults(figure.drawn()) == []


def test_changes_are_split_at_zero(run: Run) -> None:
    results = by_prompt(run.pairs, "gold")
    figure = verdict.changes(results, "gold")
    rows = rows_of(figure.spec)
    assert sum(row["prompts"] for row in rows) == len(results) == 40
    assert all(row["high"] <= 1e-9 for row in rows if row["side"] == "loss")
    assert all(row["low"] >= -1e-9 for row in rows if row["side"] == "gain")
    lost = sum(row["prompts"] for row in rows if row["side"] == "loss")
    assert lost == sum(one.policy < one.reference for one in results)
    assert faults(figure.drawn()) == []


def test_changes_of_nothing_are_drawn(run: Run) -> None:
    same = [replace(one, policy=one.reference) for one in by_prompt(run.pairs, "gold")]
    assert sum(row["prompts"] for row in rows_of(verdict.changes(same, "gold").spec)) == 40


def test_many_responses_are_drawn_by_lot_and_the_page_says_so(run: Run) -> None:
    effect = length_effect(run.pairs, "gold")
    assert effect is not None
    figure = verdict.length(run.pairs, "gold", effect)
    assert len(rows_of(figure.spec)) == 2 * 80 and "by lot" not in figure.caption
    many = verdict.length(list(run.pairs) * 10, "gold", effect)
    assert len(rows_of(many.spec)) == verdict.MOST_DOTS
    assert "600 of 1,600 responses, by lot" in many.caption
    assert faults(figure.drawn()) == []


def test_groups_have_their_number_of_prompts(run: Run) -> None:
    ((heading, groups),) = prompt_groups(by_prompt(run.pairs, "gold"))
    figure = verdict.groups(heading, groups, "gold")
    assert [row["prompts"] for row in rows_of(figure.spec)] == [one.prompts for one in groups]
    assert rows_of(figure.spec)[0]["name"].endswith(f"({groups[0].prompts})")
    assert faults(figure.drawn()) == []
