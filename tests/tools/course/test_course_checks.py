"""What the checks of the course measure: by runs written by hand, on both sides of each limit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.course import checks

GOOD, LOVELY, BAD, BROKEN = " the tea was good.", " the tea was lovely.", " the tea was bad.", " was lovely."
MANIFEST: dict[str, Any] = {
    "stage": "ppo", "inputs": {}, "parents": {}, "outputs": {}, "fingerprint": "", "section": {}, "layout": {},
    "seed": 0, "seconds": 1.0, "versions": {},
}  # fmt: skip


def run_with(
    folder: Path,
    policy: Sequence[str] = (),
    reference: Sequence[str] = (),
    *,
    prompts: Sequence[str] = (),
    ended: Sequence[bool] = (),
    compare: dict[str, Any] | None = None,
    **metrics: float,
) -> Path:
    """Write the files of a run that the checks read."""
    for name in ("ppo", "compare"):
        (folder / name).mkdir(parents=True)
        manifest = MANIFEST | {"stage": name, "metrics": {"updates": 40.0} | metrics}
        (folder / name / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "recipe.yaml").touch()
    rows = []
    for index, text in enumerate(policy):
        row = {"prompt": prompts[index] if prompts else "about tea here:", "policy": text, "policy_ended": True}
        row |= {"policy_ended": ended[index]} if ended else {}
        rows.append(row | {"reference": reference[index] if reference else GOOD})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "compare" / "samples.jsonl").write_text(text, encoding="utf-8")
    (folder / "compare" / "compare.json").write_text(json.dumps(compare or {}), encoding="utf-8")
    return folder


def passes(measures: Sequence[checks.Measure]) -> list[bool]:
    return [one.passes for one in measures]


def test_a_measure_passes_at_its_limit() -> None:
    assert checks.Measure("", 0.5, least=0.5).passes and not checks.Measure("", 0.49, least=0.5).passes
    assert checks.Measure("", 0.5, most=0.5).passes and not checks.Measure("", 0.51, most=0.5).passes


def test_distance_wants_sentences_and_lovely_ones(tmp_path: Path) -> None:
    assert passes(checks.distance(run_with(tmp_path / "a", [LOVELY, LOVELY, BAD]))) == [True, True]
    assert passes(checks.distance(run_with(tmp_path / "b", [BROKEN, BROKEN, LOVELY]))) == [False, False]
    assert passes(checks.distance(run_with(tmp_path / "c", [BAD, GOOD, GOOD]))) == [True, False]


@pytest.mark.parametrize("check", [checks.credit, checks.scale])
def test_echoes_are_counted_and_updates_limited(check: checks.Check, tmp_path: Path) -> None:
    prompts = ["abcd", "abcd", "abca"]
    right = run_with(tmp_path / "a", ["dxxx", "dbbb", "bbbb"], prompts=prompts)
    assert passes(check(right)) == [True, True]
    wrong = run_with(tmp_path / "b", ["abcd", "", "a"], prompts=prompts, updates=41.0)
    assert passes(check(wrong)) == [False, False]


def test_ends_are_counted(tmp_path: Path) -> None:
    right = run_with(tmp_path / "a", [GOOD] * 10, ended=[True] * 9 + [False])
    assert passes(checks.end(right)) == [True, True, True]
    cut = run_with(tmp_path / "b", [BAD, " the tea"], ended=[True, False])
    assert passes(checks.end(cut)) == [False, True, False]


def test_lengths_are_those_of_the_reference(tmp_path: Path) -> None:
    assert passes(checks.length(run_with(tmp_path / "a", [GOOD, LOVELY], [BAD, BAD]))) == [True, True, True]
    assert passes(checks.length(run_with(tmp_path / "b", [GOOD + LOVELY] * 2, [BAD, BAD]))) == [True, True, False]


def test_the_references_answers_are_read(tmp_path: Path) -> None:
    assert passes(checks.template(run_with(tmp_path / "a", [BROKEN] * 2, [GOOD, BAD]))) == [True]
    assert passes(checks.template(run_with(tmp_path / "b", [GOOD] * 2, ["Assistant: the tea was good.", BAD]))) == [
        False
    ]


def test_a_critic_is_measured_by_what_it_foresees(tmp_path: Path) -> None:
    right = run_with(tmp_path / "a", ["dxxx"], prompts=["abcd"], explained_variance=0.6)
    assert passes(checks.critic(right)) == [True, True, True]
    blind = run_with(tmp_path / "b", ["axxx"], prompts=["abcd"], explained_variance=0.0)
    assert passes(checks.critic(blind)) == [False, False, True]


def test_a_verdict_must_rest_on_fair_comparisons(tmp_path: Path) -> None:
    def control(name: str, kind: str, temperature: float) -> dict[str, Any]:
        return {"name": name, "kind": kind, "temperature": temperature}

    fair = [control("a", "equal_temperature", 0.0), control("b", "matched_entropy", 0.6)]
    more = [control("c", "colder_reference", 0.6), control("d", "best_of_n", 1.0)]
    report = {"controls": [*fair, *more], "verdict_basis": ["main", "a", "b", "c"]}
    assert passes(checks.temperature(run_with(tmp_path / "a", compare=report))) == [True, True]
    warm = {"controls": more, "verdict_basis": ["main", "c"]}
    assert passes(checks.temperature(run_with(tmp_path / "b", compare=warm))) == [False, False]
    assert passes(checks.temperature(run_with(tmp_path / "c", compare={"verdict_basis": ["main"]}))) == [False, False]


def test_a_run_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="there is no run here"):
        checks.distance(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RlhfctlError, match="the run's stage compare is not complete"):
        checks.distance(tmp_path)
