"""The runs of `rlhfctl reproduce rloo` are recipes that differ by their algorithm alone; the small form ends well."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path

import pytest
from conftest import run_cli
from differing import differences
from made_algorithms import step_of

from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.algorithm import NAMES, USED_BY
from rlhfctl.tools.reproduce.algorithm_outcomes import BEST_OF_N, ROWS
from rlhfctl.tools.reproduce.algorithms import (
    ALGORITHMS,
    BASE,
    CHOSEN,
    DPO,
    PPO,
    REWARD,
    SMALL,
    Sizes,
    dpo_name,
    jobs,
)
from rlhfctl.tools.reproduce.experiment import RECIPE, Job
from rlhfctl.tools.reproduce.policies import MEASURED, read_answers

OWN = {f"ppo.{key}" for key in ("algorithm", "num_generations", *USED_BY)}
"""Keys by which two algorithms may differ: the algorithm's own."""


def loaded(job: Job) -> Recipe:
    return load_recipe(RECIPE, job.overrides).recipe


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
def test_each_run_is_a_recipe_and_reads_earlier_ones(sizes: Sizes, tmp_path: Path) -> None:
    made: set[Path] = set()
    for job in jobs(3, tmp_path, sizes):
        assert loaded(job).report_to == []
        assert {Path(named) for named in job.request.external.values()} <= made, job
        stage = job.request.only or job.request.until
        assert stage is not None
        made.add(tmp_path / job.name / stage)
    assert {tmp_path / name / "ppo" for name in ALGORITHMS} <= made
    assert {path.parent.name for path in made if path.name in ("ppo", "dpo")} == {*ALGORITHMS, dpo_name(sizes.beta)}


@pytest.mark.parametrize("sizes", [Sizes(), SMALL])
def test_algorithms_get_the_same_samples_and_differ_by_their_own_keys(sizes: Sizes, tmp_path: Path) -> None:
    of = {job.name: job for job in jobs(3, tmp_path, sizes)}
    assert {str(algorithm.keys["algorithm"]) for algorithm in ALGORITHMS.values()} == set(NAMES)
    for name in ALGORITHMS:
        ppo = loaded(of[name]).ppo
        assert ppo is not None and (ppo.total_episodes, ppo.batch_size) == (sizes.episodes, sizes.batch)
        assert (ppo.kl_coef, ppo.eval.every, ppo.updates) == (sizes.kl_coef, sizes.eval_every, sizes.updates)
        changed = differences(of[PPO], of[name])
        assert {key for key in changed if ".".join(key.split(".")[:2]) not in OWN} <= {"ppo.learning_rate"}
        assert of[name].request.external == of[PPO].request.external
        assert step_of(ppo, name) == CHOSEN[name]
        assert {key: attrgetter(key)(ppo) for key in ALGORITHMS[name].keys} == ALGORITHMS[name].keys
    dpo = loaded(of[dpo_name(sizes.beta)])
    assert dpo.ppo is None and dpo.dpo is not None and dpo.dpo.trainer["learning_rate"] == CHOSEN[DPO]
    assert dpo.data == loaded(of[REWARD]).data


@pytest.mark.ci
def test_the_small_form_ends_with_statements_and_does_nothing_twice(tmp_path: Path) -> None:
    command = ("reproduce", "rloo", "--small", "--seeds", "0,1", "--folder", "r", "--json", "rloo.json")
    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rloo.json").read_text())
    assert [one["seed"] for one in found["seeds"]] == [0, 1] and len(found["statements"]) == 11
    for seed in found["seeds"]:
        assert set(seed["ends"]) == set(seed["curves"]) == set(ROWS)
        assert seed["ends"][BEST_OF_N]["score"] > 0
        assert len({one["gold"] for one in seed["ends"].values()}) > len(ROWS) / 2
    folder = tmp_path / "r" / "seed-1"
    reference, ppo = read_answers(folder / BASE), read_answers(folder / PPO)
    for answers in (reference, ppo):
        for values in (answers.gold, answers.score, answers.kl):
            assert [len(one) for one in values] == [SMALL.answers] * SMALL.eval_prompts
    assert max(map(max, reference.kl)) < 1e-6 < max(map(max, ppo.kl))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.json")}
    assert len([path for path in made if path.name == "manifest.json"]) == 2 * (3 + len(ALGORITHMS) + 1)
    assert len([path for path in made if path.name == MEASURED]) == 2 * (1 + len(ALGORITHMS) + 1)
    again = run_cli(*command, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made
