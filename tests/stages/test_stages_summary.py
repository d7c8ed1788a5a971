"""The verdict over several seeds from made-up comparisons: pooled numbers, controls, how the seeds agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from stages_of_a_run import publish, recipe_at

from rlhfctl.artifacts import Source, load_artifact
from rlhfctl.errors import HandoffError
from rlhfctl.events import Event, Metrics, VerdictReached, Warned
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import summary
from rlhfctl.stages.context import Context

PROMPTS = 80
CONTROLS = {"both greedy": "equal_temperature", "reference at 0.6": "colder_reference"}
GREEDY = "both greedy"


def values_at(shift: float, seed: int, prompts: int = PROMPTS) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal(prompts)
    return {
        "policy": (reference + shift + 0.3 * rng.standard_normal(prompts)).tolist(),
        "reference": reference.tolist(),
    }


def entry(values: Mapping[str, Sequence[float | None]], verdict: str = "better") -> dict[str, Any]:
    pairs = [pair for pair in zip(values["policy"], values["reference"], strict=True) if None not in pair]
    wins = [float(a > b) for a, b in pairs]  # type: ignore[operator]
    delta = fmean(a - b for a, b in pairs)  # type: ignore[operator]
    numbers = {"win_rate": fmean(wins), "delta": delta, "verdict": verdict}
    return numbers | {"win_rate_ci95": [0.4, 0.9], "delta_ci95": [-1.0, 1.0]}


def compared(
    run: Path, seed: int, main: Mapping[str, Any], controls: Mapping[str, Any], word: str = "better", **changes: Any
) -> None:
    """A complete compare stage of one seed. `main` and `controls`: values per prompt of the judge gold."""
    folder = run / f"seed-{seed}" / "compare"
    folder.mkdir(parents=True)
    rows = [
        {"name": name, "kind": CONTROLS.get(name, "matched_entropy"), "temperature": 0.5 + seed / 10,
         "policy_temperature": 1.0, "judges": {"gold": entry(values)}}
        for name, values in controls.items()
    ]  # fmt: skip
    report = {
        "verdict": word,
        "judges": {"gold": entry(main)},
        "controls": rows,
        "primary_judge": "gold",
        "independent": True,
        "prompts": len(main["policy"]),
        "samples_per_prompt": 4,
        "temperature": 1.0,
        "kl_mean": 2.0 + seed,
        "length_policy_mean": 9.0,
    }
    (folder / "compare.json").write_text(json.dumps(report | changes))
    kept = {"main": {"gold": main}, "controls": {name: {"gold": values} for name, values in controls.items()}}
    (folder / "values.json").write_text(json.dumps(kept))
    publish(folder, stage=f"seed-{seed}/compare", layout={"compare": "compare.json", "values": "values.json"})


def summed(run: Path, recipe: Recipe) -> tuple[dict[str, Any], list[Event]]:
    assert recipe.seeds is not None
    (run / "summary").mkdir()
    parents = {f"seed-{one}": Source.of(load_artifact(run / f"seed-{one}/compare")) for one in recipe.seeds.listed}
    events: list[Event] = []
    context = Context("summary", recipe, RunPaths(run), parents, {"section": "1"}, {}, events.append)
    made = summary.run(recipe.seeds, context)
    return json.loads(made.part("summary").read_text()), events


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_at(tmp_path, "seeds=3", "compare.bootstrap_samples=2000").recipe


def test_seeds_that_agree_are_better_in_every_fair_control(tmp_path: Path, recipe: Recipe) -> None:
    shifts = {0: 0.9, 1: 1.0, 2: 1.1}
    values = {seed: values_at(shift, seed) for seed, shift in shifts.items()}
    for seed, shift in shifts.items():
        controls = {GREEDY: values_at(shift, seed + 10), "reference at 0.6": values_at(0.0, seed + 20)}
        compared(tmp_path, seed, values[seed], controls, word="mixed" if seed == 2 else "better")
    found, events = summed(tmp_path, recipe)
    assert found["verdict"] == "better" and found["verdict_basis"] == ["main", GREEDY, "reference at 0.6"]
    assert found["seed_verdicts"] == [{"seed": 0, "verdict": "better"}, {"seed": 1, "verdict": "better"},
                                      {"seed": 2, "verdict": "mixed"}]  # fmt: skip
    assert found["sentence"].startswith("better: gold prefers the policy on ")
    assert "of 80 prompts over 3 seeds" in found["sentence"]
    assert found["sentence"].endswith("; seed by seed: 2 better, 1 mixed")
    gold = found["judges"]["gold"]
    alone = [fmean(a - b for a, b in zip(one["policy"], one["reference"], strict=True)) for one in values.values()]
    assert gold["delta"] == pytest.approx(fmean(alone)) and gold["prompts"] == PROMPTS
    assert [row["delta"] for row in gold["per_seed"]] == pytest.approx(alone)
    assert gold["delta_ci95"][0] < fmean(alone) < gold["delta_ci95"][1]
    half_width = 4.303 * np.std(alone, ddof=1) / 3**0.5  # Student's t, two degrees of freedom: prompts hardly differ
    assert gold["delta_ci95"][1] - gold["delta_ci95"][0] == pytest.approx(2 * half_width, rel=0.05)
    assert found["kl_mean"] == [2.0, 3.0, 4.0] and found["seeds"] == [0, 1, 2] and found["shared"] == ["sft"]
    assert found["controls"][0]["temperature"] == pytest.approx(0.6) and found["controls"][0]["seeds"] == [0, 1, 2]
    (told,) = [event for event in events if isinstance(event, VerdictReached)]
    assert (told.stage, told.verdict, told.sentence) == ("summary", "better", found["sentence"])
    (metrics,) = [event for event in events if isinstance(event, Metrics)]
    assert metrics.values["win_rate"] == gold["win_rate"] and metrics.values["kl"] == 3.0


def test_one_lost_control_takes_better_away(tmp_path: Path, recipe: Recipe) -> None:
    for seed in range(3):
        compared(tmp_path, seed, values_at(1.0, seed), {GREEDY: values_at(-1.0, seed + 10)}, word="mixed")
    found, _ = summed(tmp_path, recipe)
    assert found["verdict"] == "mixed" and found["controls"][0]["judges"]["gold"]["verdict"] == "worse"


def test_seeds_that_disagree_are_undecided(tmp_path: Path, recipe: Recipe) -> None:
    for seed, shift in enumerate((1.5, -0.8, 0.6)):
        compared(tmp_path, seed, values_at(shift, seed), {}, word="better" if shift > 0 else "worse")
    found, _ = summed(tmp_path, recipe)
    assert found["verdict"] == "undecided"
    assert found["sentence"].endswith("seed by seed: 2 better, 1 worse")


def test_a_control_that_some_seeds_lack_is_told(tmp_path: Path, recipe: Recipe) -> None:
    for seed in range(3):
        controls = {"matched entropy": values_at(1.0, seed)} if seed < 2 else {}
        compared(tmp_path, seed, values_at(1.0, seed), controls | ({GREEDY: values_at(1.0, seed)} if seed == 2 else {}))
    found, events = summed(tmp_path, recipe)
    assert [(row["name"], row["seeds"]) for row in found["controls"]] == [("matched entropy", [0, 1])]
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert warnings == [
        "the control matched entropy is missing for the seeds 2; it counts for the others",
        "the control both greedy is missing for the seeds 0, 1; it is left out, because one seed has no interval",
    ]


def test_prompts_that_a_judge_left_out_at_a_seed_do_not_count(tmp_path: Path, recipe: Recipe) -> None:
    for seed in range(3):
        values: dict[str, list[Any]] = {side: [*numbers] for side, numbers in values_at(1.0, seed).items()}
        for side in values:
            values[side][seed] = None
        compared(tmp_path, seed, values, {})
    found, _ = summed(tmp_path, recipe)
    assert found["judges"]["gold"]["prompts"] == PROMPTS - 3 and found["prompts"] == PROMPTS


@pytest.mark.parametrize(("changes", "said"), [({"prompts": 7}, "other prompts"), ({"judges": {}}, "other judges")])
def test_seeds_that_were_compared_otherwise_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, recipe: Recipe
) -> None:
    for seed in range(3):
        compared(tmp_path, seed, values_at(1.0, seed), {}, **(changes if seed == 1 else {}))
    with pytest.raises(HandoffError, match=said):
        summed(tmp_path, recipe)


def test_an_altered_comparison_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    for seed in range(3):
        compared(tmp_path, seed, values_at(1.0, seed), {})
    file = tmp_path / "seed-1" / "compare" / "values.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(HandoffError, match="altered after its stage finished"):
        summed(tmp_path, recipe)
