"""Figures of training: which curves are drawn, over each other, thinned, and reward against KL."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from made_run import make_run
from schema import faults, rows_of

from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.measures import Cost
from rlhfctl.report.facts.optimization import optimization_of
from rlhfctl.report.facts.records import Run, Stage
from rlhfctl.report.figures import training


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gather(make_run(tmp_path_factory.mktemp("figures") / "one"))


def ppo(run: Run) -> Stage:
    return run.of_kind("ppo")[0]


def stage(**curves: Any) -> Stage:
    return Stage("ppo", "complete", curves=curves)


def test_curves_come_in_the_order_of_the_screen_and_the_rest_is_apart(run: Run) -> None:
    drawn = training.curves("ppo", {"": ppo(run)}, [""])
    assert drawn is not None
    assert [figure.name for figure in drawn.main][:3] == ["ppo-score", "ppo-kl", "ppo-length"]
    assert "ppo-eval_score" not in [figure.name for figure in [*drawn.main, *drawn.others]]  # beside score
    assert "ppo-grad_norm" in [figure.name for figure in drawn.others]
    assert drawn.merged == 1
    assert [fault for figure in [*drawn.main, *drawn.others] for fault in faults(figure.drawn())] == []


def test_a_heldout_stage_is_drawn_with_the_words_of_the_reward_stage(run: Run) -> None:
    curves = {"loss": [(10, 0.6), (20, 0.5)], "learning_rate": [(10, 0.2), (20, 0.1)]}
    words = []
    for place in ("reward", "heldout"):
        drawn = training.curves(place, {"": replace(stage(**curves), name=place)}, [""])
        assert drawn is not None
        words.append([(figure.title, figure.caption) for figure in drawn.main])
    assert words[0] == words[1] and ("learning rate", "Learning rate of this step; plain lines call it lr.") in words[1]


def test_a_metric_stands_beside_its_twin_on_rows_held_aside(run: Run) -> None:
    drawn = training.curves("ppo", {"": ppo(run)}, [""])
    assert drawn is not None
    rows = rows_of(drawn.main[0].spec)
    assert {row["series"] for row in rows} == {"training", "held aside"}
    assert len([row for row in rows if row["split"] == "held aside"]) == 9
    assert [row["mean"] for row in rows if row["split"] == "held aside"][-1] == 2.0


def test_several_runs_are_drawn_over_each_other_in_fixed_colours(run: Run) -> None:
    drawn = training.curves("ppo", {"b": ppo(run), "c": ppo(run)}, ["a", "b", "c"])
    assert drawn is not None
    figure = drawn.main[0]
    assert {row["series"] for row in rows_of(figure.spec)} == {"b", "c"}
    colour = figure.spec["layer"][0]["encoding"]["color"]
    assert colour["scale"]["domain"] == ["a", "b", "c"] and colour["legend"] is None
    assert "Dashed: rows held aside." in figure.caption and faults(figure.drawn()) == []


def test_a_long_curve_has_a_band_from_the_lowest_to_the_highest() -> None:
    points = [(step, float(step % 2)) for step in range(2000)]
    drawn = training.curves("ppo", {"": stage(score=points)}, [""])
    assert drawn is not None and drawn.merged == 8
    figure = drawn.main[0]
    assert figure.spec["layer"][0]["mark"]["type"] == "area"
    assert {(row["low"], row["mean"], row["high"]) for row in rows_of(figure.spec)} == {(0.0, 0.5, 1.0)}
    assert faults(figure.drawn()) == []


def test_a_metric_without_two_numbers_has_no_curve() -> None:
    found = stage(score=[(1, 1.0)], kl=[(1, math.nan), (2, 1.0)])
    assert training.curves("ppo", {"": found}, [""]) is None


def test_a_metric_that_the_table_does_not_know_is_drawn() -> None:
    drawn = training.curves("words", {"": Stage("words", "complete", curves={"words": [(1, 1.0), (2, 2.0)]})}, [""])
    assert drawn is not None and drawn.main == [] and drawn.others[0].title == "words"
    assert "from 1 to 2" in drawn.others[0].alt


def test_every_update_is_a_dot_over_its_kl(run: Run) -> None:
    figure = training.reward_over_kl({"": ppo(run)})
    assert figure is not None
    rows = rows_of(figure.spec)
    assert len(rows) == 40 and rows[-1]["kl"] == 12.0 and rows[-1]["step"] == 40
    assert faults(figure.drawn()) == []
    assert training.reward_over_kl({"": stage(score=[(1, 1.0)])}) is None


def test_the_recommended_policy_and_the_one_handed_on_are_marked(run: Run) -> None:
    found = optimization_of(run, ppo(run))
    assert found is not None
    figure = training.over_optimization(found)
    marks = next(
        rows_of(figure.spec, n)
        for n, layer in enumerate(figure.spec["layer"])
        if layer.get("mark", {}).get("style") == "mark"
    )
    assert [row["label"] for row in marks] == ["recommended: update 20", "handed on: update 40"]
    assert [row["at"] for row in marks] == [pytest.approx(math.sqrt(6)), pytest.approx(math.sqrt(12))]
    assert {row["series"] for row in rows_of(figure.spec)} == {
        "reward that PPO raises", "held-out reward model", "gold, the true preference",
    }  # fmt: skip
    assert faults(figure.drawn()) == []


def test_one_policy_that_is_both_has_one_mark(run: Run) -> None:
    found = optimization_of(run, ppo(run))
    assert found is not None
    figure = training.over_optimization(replace(found, handed_on=20))
    texts = [
        row["label"]
        for layer in figure.spec["layer"]
        for row in layer.get("data", {}).get("values", ())
        if "label" in row
    ]
    assert set(texts) == {"recommended and handed on: update 20"}


def test_times_are_in_minutes() -> None:
    figure = training.times([Cost("sft", 90.0, None, None), Cost("compare", None, None, None)])
    assert figure is not None and rows_of(figure.spec) == [{"stage": "sft", "minutes": 1.5}]
    assert faults(figure.drawn()) == []
    assert training.times([Cost("sft", None, None, None)]) is None
