"""The Pareto plot: which runs no other beats in both, and what is drawn of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_run import make_run
from schema import faults, rows_of

from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.records import Run
from rlhfctl.report.figures.runs import pareto, pareto_front


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 0.6), (2, 0.7), (3, 0.65)], [0, 1]),  # the third costs more and gains less than the second
        ([(3, 0.9), (1, 0.9), (2, 0.5)], [1]),
        ([(1, 0.5), (1, 0.8)], [1]),
        ([(2, 0.5)], [0]),
        ([], []),
    ],
)
def test_the_front_is_what_no_other_beats_in_both(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(points) == front


def test_runs_are_drawn_with_their_intervals(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path / "one"))
    assert run.comparison is not None

    def with_kl(kl: float | None) -> Run:
        assert run.comparison is not None
        return replace(run, comparison=replace(run.comparison, kl=kl))

    figure = pareto(
        [("a", with_kl(2.0)), ("b", with_kl(5.0)), ("unknown", with_kl(None)), ("none", replace(run, comparison=None))]
    )
    assert figure is not None
    rows = rows_of(figure.spec)
    assert [(row["run"], row["kl"], row["gain"]) for row in rows] == [
        ("a", 2.0, run.comparison.main.win_rate), ("b", 5.0, run.comparison.main.win_rate),
    ]  # fmt: skip
    assert [row["run"] for row in rows_of(figure.spec, layer=1)] == ["a"]  # as good as b, for less KL
    assert faults(figure.drawn()) == []
    assert pareto([("a", run), ("none", replace(run, comparison=None))]) is None
