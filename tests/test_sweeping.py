"""The grid of a sweep: how its words are read, how combinations are named, and the record in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhfctl.errors import RecipeError, RlhfctlError
from rlhfctl.sweeping import (
    Combination,
    Grid,
    Sweep,
    is_sweep,
    read_grid,
    read_sweep,
    require_run,
    runs_in,
    write_sweep,
)


def folders(*words: str) -> list[str]:
    return [one.folder for one in read_grid(words).combinations()]


def test_a_grid_has_every_combination_and_the_last_key_changes_fastest() -> None:
    grid = read_grid(["ppo.kl_coef=0, 0.05,1e-1", "reward.lora.r=4,8"])
    assert [one.folder for one in grid.combinations()] == [
        "kl_coef=0,r=4", "kl_coef=0,r=8", "kl_coef=0.05,r=4", "kl_coef=0.05,r=8",
        "kl_coef=1e-1,r=4", "kl_coef=1e-1,r=8",
    ]  # fmt: skip
    assert grid.combinations()[3].overrides == ["ppo.kl_coef=0.05", "reward.lora.r=8"]
    assert grid.overrides == []


def test_seeds_are_the_seeds_of_each_run() -> None:
    assert read_grid(["a=1,2", "seed=0,1"]).overrides == ["seeds.values=[0, 1]"]
    assert read_grid(["a=1,2", "seed=7"]).overrides == ["seed=7"]
    assert folders("a=1,2", "seed=0,1") == ["a=1", "a=2"]


def test_values_are_items_of_a_yaml_list() -> None:
    grid = read_grid(["x.judges=[gold, reward_model],[gold]", "x.path='a,b',null", "x.lora={r: 4, lora_alpha: 8}"])
    assert grid.axes == {
        "x.judges": ["[gold, reward_model]", "[gold]"], "x.path": ["'a,b'", "null"], "x.lora": ["{r: 4, lora_alpha: 8}"]
    }  # fmt: skip


def test_folders_are_unique_and_fit_any_file_system() -> None:
    names = folders("a.b=x/y,x y,../z", f"c={'1' * 200},2")
    assert len(set(names)) == 6 and all(len(name) < 128 and "/" not in name for name in names)
    assert folders("a.path=x,y", "b.path=z") == ["a.path=x,b.path=z", "a.path=y,b.path=z"]  # both end alike


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ppo.kl_coef"], "is not of the form key=value,value"),
        (["a=1,,2"], "a: the values are not valid YAML"),
        (["a=1]x,[2"], "a: the values are not"),
        (["a="], "a: there is no value"),
        (["a=1,1"], "a: the value 1 stands twice"),
        (["a=1,2", "a=3,4"], "a: stands twice in the grid"),
        (["seeds=1,2"], "the seeds of a sweep are stated as seed=0,1,2"),
        (["name=a,b"], "name: cannot be varied in a sweep"),
        (["launch.num_processes=1,2"], "give it once, with --set or as an option"),
        (["a=1"], "the grid has one combination"),
        (["a=1", "seed=0,1"], "rlhfctl run RECIPE --seeds 0,1"),
    ],
)
def test_what_is_no_grid_is_refused_with_a_way_out(words: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read_grid(words)
    assert said in str(raised.value) and "fix:" in str(raised.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(RecipeError, match="3 problems"):
        read_grid(["a", "b=1,1", "name=x,y"])


def made(folder: Path, *errors: str | None) -> Sweep:
    combinations = [Combination(f"kl={n}", {"ppo.kl_coef": str(n)}, error) for n, error in enumerate(errors)]
    grid = Grid({"ppo.kl_coef": ["0", "1"]}, ["0", "1"])
    sweep = Sweep("tiny", "/recipe.yaml", ["seed=1"], grid, 5.0, combinations)
    write_sweep(folder, sweep)
    return sweep


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    sweep = made(tmp_path, None, "memory ran out")
    assert is_sweep(tmp_path) and read_sweep(tmp_path) == sweep
    assert read_sweep(tmp_path).with_error("kl=1", None).combinations[1].error is None
    assert list(json.loads((tmp_path / "sweep.json").read_text())["grid"]) == ["ppo.kl_coef"]


def test_a_record_that_cannot_be_read_names_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(RlhfctlError, match="the same rlhfctl sweep command writes it anew"):
        read_sweep(tmp_path)


def test_commands_about_one_run_name_those_of_a_sweep(tmp_path: Path) -> None:
    made(tmp_path, None, None)
    (tmp_path / "kl=1").mkdir()
    (tmp_path / "kl=1" / "recipe.yaml").write_text("name: tiny")
    assert runs_in(tmp_path) == [tmp_path / "kl=1"] and runs_in(tmp_path / "kl=1") == [tmp_path / "kl=1"]
    with pytest.raises(RlhfctlError, match=r"is a sweep, which holds several runs[^,]*kl=1"):
        require_run(tmp_path)
    require_run(tmp_path / "kl=1")
    with pytest.raises(RlhfctlError, match="there is no run here"):
        require_run(tmp_path / "kl=0")
