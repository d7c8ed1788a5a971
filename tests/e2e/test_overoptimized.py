"""PPO without a KL penalty, measured: the reward rises, gold falls, an alarm tells of it, and `use: best` stays before.

Marked slow: three runs of the quickstart, about seven minutes each on one core. How far a policy goes depends on the
seed, so each property must hold on two of three. The figures go to LOG.md.
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
ENOUGH = 2
CHANGES = (
    "ppo.kl_coef=0", "ppo.total_episodes=9600", "ppo.num_ppo_epochs=4", "ppo.eval.every=5", "ppo.use=best",
    "ppo.best_kl_limit=8", "reward.heldout=true", "data.prompts.eval=200", "compare.samples_per_prompt=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The quickstart without a KL penalty, with more episodes and epochs, at three seeds."""
    made = []
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp("far") / f"seed-{seed}"
        sets = [part for change in (*CHANGES, f"seed={seed}") for part in ("--set", change)]
        result = run_cli("run", "quickstart", "--run-dir", folder, *sets)
        assert result.returncode == 0, result.stderr
        made.append(gather(folder))
        print(figures(seed, made[-1]))
    return made


def figures(seed: int, run: Run) -> str:
    """A line per evaluation, for LOG.md."""
    found = evaluations(run)
    lines = [f"seed {seed}, handed on {found.handed_on}, {told(found)}"]
    for one in found.evaluations:
        lines.append(
            f"{one.update}: KL {one.kl:.2f}, proxy {one.scores['eval_score']:.2f}, held-out "
            f"{one.scores['eval_heldout']:.2f}, gold {one.scores['eval_gold']:.3f}"
        )
    return "\n".join(lines)


def evaluations(run: Run) -> Optimization:
    found = optimization_of(run, run.of_kind("ppo")[-1])
    assert found is not None and found.handed_on is not None
    return found


def gold(run: Run) -> dict[int, float]:
    """Gold's mean at each evaluation."""
    return {one.update: one.scores["eval_gold"] for one in evaluations(run).evaluations}


def alarms(run: Run) -> list[str]:
    return [alarm.sentence for alarm in run.alarms if alarm.stage == "ppo" and alarm.holds]


def test_the_reward_rises_and_gold_falls(runs: list[Run]) -> None:
    falls = []
    for run in runs:
        found, deviation = evaluations(run), reference_std(run.pairs, "gold")
        assert deviation is not None
        assert found.change("eval_score", len(found.evaluations) - 1) > 0.5
        falls.append((max(gold(run).values()) - list(gold(run).values())[-1]) / deviation)
    assert sum(fall >= 0.2 for fall in falls) >= ENOUGH, falls


def test_an_alarm_tells_of_it_without_gold(runs: list[Run]) -> None:
    said = [[one for one in alarms(run) if "the policy is far from the reference" in one] for run in runs]
    assert sum(map(bool, said)) >= ENOUGH, said
    assert not any("gold" in one for run in runs for one in alarms(run))


def test_the_best_policy_is_better_than_the_last(runs: list[Run]) -> None:
    for run in runs:
        chosen = next(one for one in evaluations(run).evaluations if one.update == evaluations(run).handed_on)
        assert chosen.kl <= 8
    better = [gold(run)[evaluations(run).handed_on or 0] > list(gold(run).values())[-1] for run in runs]
    assert sum(better) >= ENOUGH, better


def test_the_report_says_so_in_words(runs: list[Run]) -> None:
    assert sum(told(evaluations(run)).startswith("PPO went too far: from ") for run in runs) >= ENOUGH
    checks = [next(one for one in words.checks(run) if one.title == "Alarms") for run in runs]
    assert sum(one.mark == "bad" and "at the end of training" in one.text for one in checks) >= ENOUGH
