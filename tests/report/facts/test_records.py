"""The records of a run: what a stage is called, which control is the strictest, by how much a pair has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.report.facts.records import Comparison, Control, Judged, Pair, Run, Stage


def judged(rate: float, verdict: str = "better") -> Judged:
    return Judged("gold", rate, (rate - 0.1, rate + 0.1), 0.2, (0.1, 0.3), verdict)


def control(name: str, kind: str, rate: float, verdict: str = "better", temperature: float = 0.6) -> Control:
    return Control(name, kind, temperature, {"gold": judged(rate, verdict)})


@pytest.mark.parametrize(
    ("name", "kind", "seed", "place"),
    [
        ("ppo", "ppo", "", "ppo"),
        ("seed-3/ppo", "ppo", "seed 3", "ppo"),
        ("round-2/ppo", "ppo", "", "round-2/ppo"),
        ("round-2/seed-0/ppo", "ppo", "seed 0", "round-2/ppo"),
    ],
)
def test_a_stages_name_says_kind_seed_and_place(name: str, kind: str, seed: str, place: str) -> None:
    stage = Stage(name, "complete")
    assert (stage.kind, stage.seed, stage.place) == (kind, seed, place)


def test_the_lowest_fair_control_leaves_out_colder_references_and_best_of_n() -> None:
    controls = [
        control("both greedy", "equal_temperature", 0.8),
        control("matched entropy", "matched_entropy", 0.7, temperature=1.1),
        control("reference at 0.6", "colder_reference", 0.4, "worse"),
        control("best of 4", "best_of_n", 0.3, "worse"),
    ]
    found = Comparison("compare", "better", "", "gold", {"gold": judged(0.9)}, controls)
    assert found.lowest is controls[1]
    assert found.lowest.label == "matched entropy (reference at 1.1)"
    assert [one.name for one in found.colder_wins] == ["reference at 0.6"]
    assert [one.role for one in controls[1:]] == ["fair: both sides alike", "reference colder", "reference, best of n"]
    assert Comparison("compare", "better", "", "gold", {"gold": judged(0.9)}).lowest is None


def test_a_change_needs_both_scores() -> None:
    pair = Pair("p", 0, "a", "b", {"gold": 0.5, "other": 1.0}, {"gold": 0.75}, 1, 1)
    assert pair.change("gold") == -0.25
    assert pair.change("other") is None


def test_a_run_is_finished_when_every_stage_is_complete() -> None:
    def run(*states: str) -> Run:
        return Run(Path("r"), "r", {}, "", [Stage(f"s{n}", state) for n, state in enumerate(states)])

    assert run("complete", "complete").finished
    assert not run("complete", "under way").finished
    assert not run().finished
