"""PPO without a KL penalty, measured: the reward rises, gold falls, an alarm tells of it, and `use: best` stays before.

Marked slow: three runs of the quickstart, about five minutes each on one core. The figures go to LOG.md.
"""

from __future__ import annotations

import pytest
from conftest import run_cli

from rlhfctl.report import words
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.measures import reference_std
from rlhfctl.report.facts.optimization import Optimization, optimization_of, told
from rlhfctl.report.facts.records import Run

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
CHANGES = (
    "ppo.kl_coef=0", "ppo.total_episodes=7680", "ppo.eval.every=5", "ppo.use=best", "ppo.best_kl_limit=8",
    "reward.heldout=true", "data.prompts.eval=200", "compare.samples_per_prompt=2",
)  # fmt: skip


@pytest.fixture(scope="module", params=SEEDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The quickstart without a KL penalty, with twice the episodes, at one seed."""
    folder = tmp_path_factory.mktemp("far") / f"seed-{request.param}"
    sets = [part for change in (*CHANGES, f"seed={request.param}") for part in ("--set", change)]
    result = run_cli("run", "quickstart", "--run-dir", folder, *sets)
    assert result.returncode == 0, result.stderr
    return gather(folder)


@pytest.fixture(scope="module")
def found(run: Run) -> Optimization:
    found = optimization_of(run, run.of_kind("ppo")[-1])
    assert found is not None and found.handed_on is not None
    curves = ", ".join(
        f"{one.update}: KL {one.kl:.2f}, proxy {one.scores['eval_score']:.2f}, held-out "
        f"{one.scores['eval_heldout']:.2f}, gold {one.scores['eval_gold']:.3f}"
        for one in found.evaluations
    )
    print(f"{run.name}: {curves}; handed on {found.handed_on}")
    return found


def test_the_reward_rises_and_gold_falls(run: Run, found: Optimization) -> None:
    last = len(found.evaluations) - 1
    assert found.change("eval_score", last) > 0.5
    deviation = reference_std(run.pairs, "gold")
    assert deviation is not None
    gold = [one.scores["eval_gold"] for one in found.evaluations]
    assert (max(gold) - gold[-1]) / deviation >= 0.2


def test_an_alarm_tells_of_it_without_gold(run: Run) -> None:
    said = [alarm.sentence for alarm in run.alarms if alarm.stage == "ppo" and alarm.holds]
    assert any("the policy is far from the reference" in one for one in said), said
    assert all("gold" not in one for one in said)


def test_the_best_policy_is_better_than_the_last(run: Run, found: Optimization) -> None:
    gold = {one.update: one.scores["eval_gold"] for one in found.evaluations}
    kl = {one.update: one.kl for one in found.evaluations}
    assert found.handed_on is not None and kl[found.handed_on] <= 8
    assert gold[found.handed_on] > gold[max(gold)]


def test_the_report_says_so_in_words(run: Run, found: Optimization) -> None:
    assert told(found).startswith("PPO went too far: from ")
    check = next(one for one in words.checks(run) if one.title == "Alarms")
    assert check.mark == "bad" and "at the end of training" in check.text
