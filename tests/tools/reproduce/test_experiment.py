"""The runs of `rlhfctl reproduce gao` are valid recipes that differ by what they should; the small form ends well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cli

from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.reproduce.experiment import RECIPE, SCORES, SMALL, Job, Sizes, jobs, members


def loaded(job: Job) -> dict[str, object]:
    return load_recipe(RECIPE, job.overrides).recipe.model_dump(mode="json")


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
    for name in members(sizes):
        assert tmp_path / name / "reward" in made


def test_a_proxy_differs_by_its_pairs_a_member_by_its_seed_and_the_penalty_by_itself(tmp_path: Path) -> None:
    sizes = Sizes()
    recipes = {job.name: loaded(job) for job in jobs(3, tmp_path, sizes)}

    def differences(first: str, second: str) -> set[str]:
        def flat(value: object, path: str = "") -> dict[str, object]:
            if isinstance(value, dict):
                return {k: v for key, item in value.items() for k, v in flat(item, f"{path}.{key}").items()}
            return {path: value}

        one, other = flat(recipes[first]), flat(recipes[second])
        return {key.lstrip(".") for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - {"name"}

    assert differences("rm-250", "rm-750") == {"data.preferences.rows"}
    assert differences("rm-750", "member-1") == {"seed"}
    assert differences("rm-750", "penalty") == {"ppo.kl_coef"}
    assert differences("rm-750", "small") == {"model.init.hidden_size"}


@pytest.mark.slow
def test_the_small_form_ends_with_statements_and_does_nothing_twice(tmp_path: Path) -> None:
    command = ("reproduce", "gao", "--small", "--seeds", "0,1", "--folder", "gao", "--json", "gao.json")
    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gao.json").read_text())
    assert [seed["seed"] for seed in found["seeds"]] == [0, 1]
    assert len(found["statements"]) == 8
    assert found["sizes"]["rows"] == list(SMALL.rows)
    assert "statements" in done.stdout
    assert "Reward over-optimization" in (tmp_path / "gao" / "report.html").read_text(encoding="utf-8")
    made = written(tmp_path / "gao")
    assert len(made) > 2 * len(members(SMALL))
    again = run_cli(*command[:-2], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert written(tmp_path / "gao") == made


def written(folder: Path) -> dict[Path, int]:
    """When each manifest and each file of scores was written last."""
    return {path: path.stat().st_mtime_ns for name in ("manifest.json", SCORES) for path in folder.rglob(name)}
