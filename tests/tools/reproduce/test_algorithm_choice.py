"""`reproduce rloo --choose` tries as many step sizes for each algorithm, and chooses by the reward model and KL."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from made_algorithms import step_of
from rich.console import Console

from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.reproduce.algorithm_choice import (
    SEED,
    Tried,
    _tried,
    best,
    candidates,
    jobs,
    run_name,
    to_json,
    view,
)
from rlhfctl.tools.reproduce.algorithms import CHOSEN, DPO, PPO, Sizes
from rlhfctl.tools.reproduce.experiment import RECIPE
from rlhfctl.tools.reproduce.policies import MEASURED

TRIED = [
    Tried(PPO, 0.1, score=2.0, kl=9.0, objective=1.1),
    Tried(PPO, 0.2, score=1.5, kl=1.0, objective=1.4),
    Tried(DPO, 0.3, score=0.5, kl=0.5, objective=0.45),
    Tried(DPO, 0.4, score=0.4, kl=9.0, objective=-0.5),
]


def drawn(chosen: dict[str, float]) -> str:
    out = io.StringIO()
    for part in view(TRIED, chosen):
        Console(file=out, width=100).print(part)
    return out.getvalue()


def test_each_algorithm_has_as_many_candidates_and_is_used_with_one_of_them() -> None:
    assert {len(set(steps)) for steps in candidates().values()} == {3}
    assert candidates().keys() == CHOSEN.keys()
    assert all(CHOSEN[name] in steps for name, steps in candidates().items())
    assert SEED not in range(5)  # the seeds of the command


def test_each_candidate_is_a_run_of_its_own_that_is_evaluated_at_both_ends_alone(tmp_path: Path) -> None:
    recipes = {job.name: load_recipe(RECIPE, job.overrides).recipe for job in jobs(tmp_path, Sizes())}
    assert len(recipes) == 2 + 3 * len(CHOSEN)
    for algorithm, steps in candidates().items():
        for step in steps:
            recipe = recipes[run_name(algorithm, step)]
            assert recipe.seed == recipe.data_seed == SEED
            if algorithm == DPO:
                assert recipe.dpo is not None and recipe.dpo.trainer["learning_rate"] == step
                assert recipe.dpo.beta == Sizes().beta
            else:
                assert recipe.ppo is not None and recipe.ppo.eval.every > recipe.ppo.updates
                assert step_of(recipe.ppo, algorithm) == step


def test_the_objective_is_the_score_less_the_kl_with_its_coefficient(tmp_path: Path) -> None:
    events = [
        {
            "event": "metrics",
            "stage": "ppo",
            "split": "eval",
            "step": step,
            "values": {"eval_score": score, "eval_kl": kl},
        }
        for step, score, kl in ((0, 0.0, 0.0), (32, 1.5, 4.0))
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert _tried(PPO, 0.1, tmp_path, 0.1) == Tried(PPO, 0.1, 1.5, 4.0, pytest.approx(1.1))
    answers = {"gold": [[9.0, 9.0]], "score": [[0.5, 1.5]], "kl": [[1.0, 3.0]]}
    (tmp_path / MEASURED).write_text(json.dumps({"of": [], "answers": answers}))
    assert _tried(DPO, 0.1, tmp_path, 0.1) == Tried(DPO, 0.1, 1.0, 2.0, pytest.approx(0.8))


def test_the_best_has_the_highest_objective_and_the_view_says_where_another_is_used() -> None:
    assert best(TRIED) == {PPO: 0.2, DPO: 0.3}
    assert "these are the step sizes that the command uses" in drawn({PPO: 0.2, DPO: 0.3})
    assert "ppo 0.2 (used: 0.1)" in drawn({PPO: 0.1, DPO: 0.3}).replace("\n", " ")
    assert [line.split()[:2] for line in drawn({PPO: 0.2, DPO: 0.3}).splitlines() if "best" in line] == [
        [PPO, "0.2"],
        [DPO, "0.3"],
    ]
    assert to_json(TRIED, Sizes())["best"] == {PPO: 0.2, DPO: 0.3}
