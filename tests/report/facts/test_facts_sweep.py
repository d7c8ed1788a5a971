"""What a sweep's runs measured, and which setting is chosen by it: within the limit, on one scale, not by gold."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import manifest
from made_sweep import setting, sweep_of

from rlhfctl.report.facts.sweep import GOLD, HELDOUT, KL, SCORE, Estimate, choose, gather_sweep


def test_an_interval_over_seeds_is_students() -> None:
    found = Estimate.of({"seed 0": 1.0, "seed 1": 2.0, "seed 2": 3.0})
    assert found.mean == 2.0 and found.interval is not None
    assert found.interval == pytest.approx((2 - 2.4841377, 2 + 2.4841377))  # 4.3026527 x 1 / sqrt(3)
    assert Estimate.of({"": 1.0}).interval is None


def test_the_highest_heldout_reward_within_the_limit_is_chosen() -> None:
    settings = [
        setting("a", heldout=1.0, score=9.0, kl=2.0), setting("b", heldout=3.0, score=1.0, kl=9.0),
        setting("c", heldout=2.0, score=2.0, kl=5.0),
    ]  # fmt: skip
    free, bounded = choose(settings, None), choose(settings, 5.0)
    assert free.best is settings[1] and (free.tried, free.allowed) == (3, 3)
    assert bounded.best is settings[2] and bounded.second is settings[0] and (bounded.tried, bounded.allowed) == (3, 2)
    assert bounded.measure == HELDOUT and bounded.lead is not None and bounded.lead.mean == 1.0
    assert choose(settings, 1.0).why_not == "no setting is within the KL limit"


def test_gold_chooses_nothing_and_the_reward_stands_in_where_a_heldout_one_is_missing() -> None:
    settings = [setting("a", heldout=1.0, score=2.0, gold=0.0, kl=1.0), setting("b", score=1.0, gold=9.0, kl=1.0)]
    found = choose(settings, None)
    assert found.measure == SCORE and found.best is settings[0]
    assert "was measured" in choose([setting("a", gold=1.0, kl=1.0)], None).why_not and GOLD not in (HELDOUT, SCORE)


def test_the_lead_is_taken_seed_by_seed() -> None:
    ours = {"seed 0": 1.0, "seed 1": 11.0, "seed 2": 21.0}
    theirs = {seed: value - 1 for seed, value in ours.items()}  # each seed has a scale of its own
    found = choose([setting("a", heldout=theirs, kl=ours), setting("b", heldout=ours, kl=ours)], None)
    assert found.best is not None and found.best.label == "b" and found.lead is not None
    assert found.lead.interval == (1.0, 1.0)
    assert found.best.measures[HELDOUT].interval != (11.0, 11.0)


def test_scores_of_different_models_choose_nothing() -> None:
    found = choose([setting("a", 1, heldout=1.0, kl=1.0), setting("b", 2, heldout=2.0, kl=1.0)], None)
    assert found.best is None and "different scales" in found.why_not


def test_runs_are_read_with_their_measures(tmp_path: Path) -> None:
    facts = gather_sweep(sweep_of(tmp_path, limit=5.0))
    first, second, third = facts.settings
    assert first.complete and first.measures[HELDOUT].mean == 1.5 and first.measures[KL].mean == 9.0
    assert not third.complete and third.measures == {} and third.run is not None
    assert facts.choice.best is second and facts.choice.tried == 2 and len(facts.runs) == 3


def test_other_eval_prompts_are_another_scale(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path)
    metrics = {HELDOUT: 3.0, KL: 1.0}
    manifest(folder / "kl_coef=0" / "ppo", "ppo", metrics=metrics, parents=["base=sft"], data=["data.other"])
    assert "different scales" in gather_sweep(folder).choice.why_not


def test_a_combination_that_has_not_begun_has_no_run(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path)
    (folder / "kl_coef=1" / "recipe.yaml").unlink()
    assert gather_sweep(folder).settings[2].run is None
