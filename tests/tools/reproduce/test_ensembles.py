"""The runs of `rlhfctl reproduce coste` are valid recipes that differ by what they should; its numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cli

from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.reproduce import ensemble_view
from rlhfctl.tools.reproduce.ensemble_outcomes import Arm, Seed, check
from rlhfctl.tools.reproduce.ensembles import AGGREGATES, ARMS, CLEAN, ENSEMBLE, NOISY, SINGLE, SMALL, Sizes, jobs
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


def arm(*gold: float) -> Arm:
    return Arm(list(range(len(gold))), list(gold), [0.0] * len(gold))


def test_gold_is_counted_from_the_reference_in_the_given_unit() -> None:
    values = [(0.5, 0.0), (0.9, 1.0), (0.3, 4.0)]
    made = Arm.of({step: {"eval_gold": gold, "eval_kl": kl} for step, (gold, kl) in enumerate(values)}, 0.2)
    assert made.gold == pytest.approx([0.0, 2.0, -1.0]) and made.kl == [0.0, 1.0, 4.0]
    assert (made.peak, made.final, made.fall) == pytest.approx((2.0, -1.0, 3.0))
    assert arm(0.0, -1.0).fall == 1.0  # the reference itself is the peak


def seed(number: int, single: Arm, ensemble: Arm) -> Seed:
    arms = {labels: {SINGLE: single, **dict.fromkeys(AGGREGATES, ensemble)} for labels in LABELS}
    accuracy = {labels: {SINGLE: 0.8, ENSEMBLE: 0.9} for labels in LABELS}
    return Seed(number, arms, accuracy, dict.fromkeys(LABELS, 0.3))


@pytest.mark.parametrize(
    ("ensemble", "held"),
    [(arm(0.0, 1.0, 0.9), True), (arm(0.0, 1.0, -1.0), False), (arm(0.0, 1.0, 0.0), None)],
)
def test_statements_hold_where_both_measures_do(ensemble: Arm, held: bool | None) -> None:
    """One model falls by 1.0 and by 1.1, and ends at 0 and -0.1; three seeds, whose t for 95% is 4.30."""
    seeds = [seed(n, arm(0.0, 1.0, -0.1 * (n % 2)), ensemble) for n in range(3)]
    found = {one.name: one for one in check(seeds)}
    assert len(found) == 8
    assert found["premise (clean)"].held is True  # 1.03, above 0.2
    for how in ("mean", "worst score", "mean less variance"):
        for labels in LABELS:
            assert found[f"{how} ({labels})"].held is held
    (fall, final) = found["mean (noisy)"].measures
    assert fall.value == pytest.approx(1.0 + 0.1 / 3 - ensemble.fall)
    assert final.value == pytest.approx(ensemble.final + 0.1 / 3)


def test_the_view_and_the_json_hold_every_arm() -> None:
    seeds = [seed(n, arm(0.0, 1.0, 0.1 * n), arm(0.0, 1.0, 0.9)) for n in range(3)]
    outcomes = check(seeds)
    assert len(list(ensemble_view.view(seeds, outcomes))) > 10
    result = json.loads(json.dumps(ensemble_view.to_json(seeds, outcomes, Sizes())))
    assert result["seeds"][2]["arms"]["noisy"]["min"]["gold"] == [0.0, 1.0, 0.9]
    assert len(result["statements"]) == 8 and result["sizes"]["members"] == 5


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
