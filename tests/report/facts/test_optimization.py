"""Over-optimization from the evaluations of PPO: units, the recommended evaluation, and the sentence about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_run import hidden, kl_at, make_run, manifest, proxy

from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.optimization import Optimization, optimization_of, told
from rlhfctl.report.facts.records import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gather(make_run(tmp_path_factory.mktemp("over") / "one"))


def found_in(run: Run) -> Optimization:
    found = optimization_of(run, run.of_kind("ppo")[-1])
    assert found is not None
    return found


def test_the_evaluations_are_read_with_their_kl(run: Run) -> None:
    found = found_in(run)
    assert [one.update for one in found.evaluations] == list(range(0, 41, 5))
    assert found.evaluations[4].kl == kl_at(0.5) and found.evaluations[4].scores["eval_gold"] == hidden(0.5)
    assert found.scorers == ["eval_score", "eval_heldout", "eval_gold"]


def test_the_recommended_policy_is_where_the_held_out_reward_peaks(run: Run) -> None:
    found = found_in(run)
    assert found.guide == "eval_heldout" and found.recommended is not None
    assert found.evaluations[found.recommended].update == 20
    assert found.handed_on == 40


def test_without_a_known_spread_each_scorer_is_drawn_over_its_own_range(run: Run) -> None:
    found = found_in(run)
    assert not found.in_deviations  # no judge of the comparison gives the held-out reward's scores
    assert found.change("eval_score", 8) == pytest.approx(1) and found.change("eval_gold", 4) == pytest.approx(1)
    assert "of its range" in told(found)


def test_with_a_known_spread_changes_are_in_standard_deviations(run: Run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "two")
    manifest(folder / "heldout", "heldout", metrics={"score_std": 2.0})
    found = found_in(gather(folder))
    assert found.in_deviations and found.units["eval_heldout"] == 2.0
    assert found.units["eval_score"] == pytest.approx(found_in(run).units["eval_score"] / 2, rel=0.9)
    assert found.change("eval_heldout", 4) == pytest.approx((0.8 * hidden(0.5) + 0.2 * 0.5) / 2.0)


def test_a_rising_reward_beside_a_falling_one_is_said_in_words(run: Run) -> None:
    said = told(only(found_in(run), "eval_score", "eval_heldout"))
    assert said.startswith("PPO went too far: from update 20 (KL 6) to update 40 (KL 12)")
    assert said.endswith("The policy of update 20 is the better one.")


def only(found: Optimization, *scorers: str) -> Optimization:
    evaluations = [replace(one, scores={name: one.scores[name] for name in scorers}) for one in found.evaluations]
    guide = next((name for name in ("eval_heldout", "eval_gold") if name in scorers), "")
    return replace(found, evaluations=evaluations, units={name: found.units[name] for name in scorers}, guide=guide)


def test_a_fall_without_a_rise_of_the_reward_is_told_as_a_fall(run: Run) -> None:
    falling = [
        replace(one, scores={"eval_score": 1.0, "eval_gold": one.scores["eval_gold"]})
        for one in found_in(run).evaluations
    ]
    found = replace(only(found_in(run), "eval_score", "eval_gold"), evaluations=falling)
    assert told(found).startswith("The gold, the true preference was highest at update 20")


def test_a_reward_that_all_follow_is_no_over_optimization(run: Run) -> None:
    rising = [
        replace(one, scores={"eval_score": proxy(one.update / 40), "eval_gold": proxy(one.update / 40)})
        for one in found_in(run).evaluations
    ]
    found = replace(only(found_in(run), "eval_score", "eval_gold"), evaluations=rising)
    assert told(found).startswith("No sign of over-optimization: the gold, the true preference rose by")


def test_without_another_scorer_nothing_is_recommended(tmp_path: Path, run: Run) -> None:
    assert told(only(found_in(run), "eval_score")).startswith("Nothing independent was measured during PPO")
    stage = run.of_kind("ppo")[-1]
    curves = {name: points for name, points in stage.curves.items() if name not in ("eval_gold", "eval_heldout")}
    found = optimization_of(run, replace(stage, curves=curves))
    assert found is not None and found.recommended is None and found.guide == ""


def test_one_evaluation_is_no_curve(run: Run) -> None:
    stage = run.of_kind("ppo")[-1]
    assert optimization_of(run, replace(stage, curves={"eval_score": [(0, 1.0)], "eval_kl": [(0, 0.0)]})) is None
    assert optimization_of(run, replace(stage, curves={})) is None


def with_errors(found: Optimization, error: float) -> Optimization:
    """The same evaluations, without gold, with standard errors."""
    both = only(found, "eval_score", "eval_heldout")
    evaluations = [replace(one, errors={"eval_score": error, "eval_heldout": error}) for one in both.evaluations]
    return replace(both, evaluations=evaluations)


def test_a_fall_beyond_the_noise_is_told_as_the_alarm_tells_it(run: Run) -> None:
    found = with_errors(found_in(run), 0.01)
    exploited = found.exploited()
    assert exploited is not None and exploited.peak_step == 20
    said = told(found)
    assert said.startswith("PPO went too far: from about update 20 (KL 6) to update 40 (KL 12)")
    assert said.endswith("The policy of update 20 is the better one.")


def test_a_fall_within_the_noise_is_told_as_chance(run: Run) -> None:
    found = with_errors(found_in(run), 5.0)
    assert found.exploited() is None
    assert told(found).endswith("below its peak (update 20), no more than chance gives.")


def test_gold_is_told_beside_the_held_out_reward(run: Run) -> None:
    said = told(found_in(run))
    assert said.startswith("PPO went too far: from update 20") and said.count("PPO went too far") == 1
    assert "Gold, the true preference, fell by" in said and said.endswith("from its peak (update 20).")


def test_a_held_out_reward_that_does_not_see_the_fall_of_gold_is_told_so(run: Run) -> None:
    found = found_in(run)
    blind = replace(
        found,
        evaluations=[
            replace(one, scores={**one.scores, "eval_heldout": one.scores["eval_score"]}) for one in found.evaluations
        ],
    )
    said = told(blind)
    assert said.startswith("PPO went too far: from update 20") and "while the gold, the true preference fell" in said
    assert "The held-out reward model did not see it: it rose by" in said and "No sign" not in said


def test_gold_that_follows_is_told_too(run: Run) -> None:
    found = found_in(run)
    rising = [replace(one, scores=dict.fromkeys(one.scores, one.scores["eval_score"])) for one in found.evaluations]
    said = told(replace(found, evaluations=rising))
    assert said.startswith("No sign of over-optimization: the held-out reward model rose by")
    assert said.endswith("Gold, the true preference, has not clearly fallen from its peak.")


def test_the_errors_of_the_evaluations_are_read(run: Run) -> None:
    assert not found_in(run).has_errors  # this run was made without them
    stage = run.of_kind("ppo")[-1]
    given = {f"{name}_se": [(step, 0.1) for step, _ in stage.curves[name]] for name in ("eval_score", "eval_heldout")}
    found = optimization_of(run, replace(stage, curves={**stage.curves, **given}))
    assert found is not None and found.has_errors and found.evaluations[3].errors["eval_heldout"] == 0.1


def test_the_policy_of_use_best_is_the_one_handed_on(run: Run) -> None:
    stage = run.of_kind("ppo")[-1]
    assert stage.manifest is not None
    manifest_ = stage.manifest.model_copy(
        update={"section": {"use": "best"}, "metrics": {"updates": 40, "best_update": 15}}
    )
    found = optimization_of(run, replace(stage, manifest=manifest_))
    assert found is not None and found.handed_on == 15
