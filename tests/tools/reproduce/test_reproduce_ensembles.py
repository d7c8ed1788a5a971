"""The runs of `rlhfctl reproduce coste` are valid recipes that differ by what they should; the small form ends well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cli

from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.reproduce.ensembles import ARMS, CLEAN, ENSEMBLE, NOISY, SMALL, Sizes, jobs
from rlhfctl.tools.reproduce.experiment import RECIPE, Job

LABELS = (CLEAN, NOISY)


def loaded(job: Job) -> dict[str, object]:
    return load_recipe(RECIPE, job.overrides).recipe.model_dump(mode="json")


def flat(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}.{key}").items()}
    return {path.lstrip("."): value}


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
def test_each_run_is_a_recipe_and_reads_earlier_ones(sizes: Sizes, tmp_path: Path) -> None:
    made: set[Path] = set()
    for job in jobs(3, tmp_path, sizes):
        assert load_recipe(RECIPE, job.overrides).recipe.report_to == []
        for named in job.request.external.values():
            assert Path(named) in made, job
        stage = job.request.only or job.request.until
        assert stage is not None
        made.add(tmp_path / job.name / stage)
    for labels in LABELS:
        assert all(tmp_path / f"{labels}-{arm}" / "ppo" in made for arm in ARMS)


def test_arms_differ_by_their_reward_and_noise_by_its_share(tmp_path: Path) -> None:
    recipes = {job.name: flat(loaded(job)) for job in jobs(3, tmp_path, Sizes())}

    def differences(first: str, second: str) -> dict[str, object]:
        one, other = recipes[first], recipes[second]
        keys = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - {"name"}
        return {key: other.get(key) for key in keys}

    assert differences("clean-single", "clean-ensemble") == {"reward.members": 5}
    assert differences("clean-ensemble", "clean-mean") == {}
    assert differences("clean-mean", "clean-min") == {"reward.aggregate": "min"}
    assert differences("clean-mean", "clean-variance") == {
        "reward.aggregate": "variance",
        "reward.variance_coefficient": 0.5,
    }
    for arm in (*ARMS, ENSEMBLE):
        assert differences(f"clean-{arm}", f"noisy-{arm}") == {"data.preferences.label_noise": 0.25}


@pytest.mark.slow
def test_the_small_form_ends_with_statements_and_does_nothing_twice(tmp_path: Path) -> None:
    command = ("reproduce", "coste", "--small", "--seeds", "0,1", "--folder", "coste", "--json", "coste.json")
    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "coste.json").read_text())
    assert [one["seed"] for one in found["seeds"]] == [0, 1] and len(found["statements"]) == 8
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "coste").rglob("manifest.json")}
    assert len(made) == 2 * (1 + 2 * 6 + 1)
    again = run_cli(*command, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made
