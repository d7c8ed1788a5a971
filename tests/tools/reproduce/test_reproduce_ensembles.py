"""The runs of `rlhfctl reproduce coste` are valid recipes that differ by what they should; the small form ends well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cli
from differing import differences

from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.reproduce.ensembles import ARMS, CLEAN, ENSEMBLE, NOISY, SMALL, Sizes, jobs
from rlhfctl.tools.reproduce.experiment import RECIPE

LABELS = (CLEAN, NOISY)


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
    of = {job.name: job for job in jobs(3, tmp_path, Sizes())}

    assert differences(of["clean-single"], of["clean-ensemble"]) == {"reward.members": 5}
    assert differences(of["clean-ensemble"], of["clean-mean"]) == {}
    assert differences(of["clean-mean"], of["clean-min"]) == {"reward.aggregate": "min"}
    assert differences(of["clean-mean"], of["clean-variance"]) == {
        "reward.aggregate": "variance",
        "reward.variance_coefficient": 0.5,
    }
    for arm in (*ARMS, ENSEMBLE):
        assert differences(of[f"clean-{arm}"], of[f"noisy-{arm}"]) == {"data.preferences.label_noise": 0.25}


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
