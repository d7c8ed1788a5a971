"""The runs of `rlhfctl reproduce christiano` are valid recipes that differ by their choice; the small form ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cli

from rlhfctl.artifacts import load_artifact
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe
from rlhfctl.tools.reproduce.experiment import RECIPE, Job
from rlhfctl.tools.reproduce.queries import ACTIVE, ORDERS, RANDOM, SMALL, Sizes, jobs, stage_folder


def loaded(job: Job) -> Recipe:
    return load_recipe(RECIPE, job.overrides).recipe


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
def test_each_run_asks_for_its_rounds_after_the_base(sizes: Sizes, tmp_path: Path) -> None:
    made, number = {tmp_path / "base" / "sft"}, len(sizes.questions)
    (base, *todo) = jobs(3, tmp_path, sizes)
    assert base.request.until == "sft"
    for job in todo:
        assert {Path(named) for named in job.request.external.values()} <= made
        assert job.request.only is not None
    for order in ORDERS:
        stages = [job.request.only for job in todo if job.name == order]
        assert stages[:4] == ["sample", "label", "reward", "round-2/sample"] and len(stages) == 3 * number


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
def test_orders_differ_by_the_candidates_alone_and_no_prompt_is_one_twice(sizes: Sizes, tmp_path: Path) -> None:
    recipes = {job.name: loaded(job) for job in jobs(3, tmp_path, sizes)}
    active = recipes[ACTIVE]
    assert active.sample is not None and active.rounds is not None and active.data.prompts is not None
    same = active.model_copy(update={"sample": active.sample.model_copy(update={"candidates": 1})})
    assert same.model_dump(exclude={"name"}) == recipes[RANDOM].model_dump(exclude={"name"})
    assert active.rounds.questions(active.sample.prompts) == list(sizes.questions)
    first, *later = sizes.questions
    rows, test = active.data.prompts.rows, active.data.prompts.test
    assert rows is not None and test is not None
    assert first + sizes.candidates * sum(later) <= rows - test
    assert active.sample.candidates == sizes.candidates and active.report_to == []


@pytest.mark.ci
def test_the_small_form_ends_with_statements_and_does_nothing_twice(tmp_path: Path) -> None:
    command = ("reproduce", "christiano", "--small", "--seeds", "0,1", "--folder", "c", "--json", "christiano.json")
    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "christiano.json").read_text())
    assert [one["seed"] for one in found["seeds"]] == [0, 1] and len(found["statements"]) == 5
    for one in found["seeds"]:
        assert one["budgets"] == [24, 48, 96]
        assert one["accuracy"][RANDOM][0] == one["accuracy"][ACTIVE][0]  # the first round is the same
        assert one["accuracy"][RANDOM][1:] != one["accuracy"][ACTIVE][1:]
    folder = tmp_path / "c" / "seed-1"
    for number, count in enumerate(SMALL.questions, 1):
        for order in ORDERS:
            metrics = load_artifact(stage_folder(folder, order, number, "sample")).manifest.metrics
            assert metrics["items"] == count
            assert ("disagreement" in metrics) == (order == ACTIVE and number > 1)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.json")}
    assert len([path for path in made if path.name == "manifest.json"]) == 2 * (1 + 2 * 3 * 3)
    again = run_cli(*command, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made
