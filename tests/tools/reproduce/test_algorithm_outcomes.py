"""The numbers of `rlhfctl reproduce rloo` by hand: win rates, equal samples, equal KL, and when a statement holds."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from made_algorithms import curve, seed

from rlhfctl.artifacts import Manifest
from rlhfctl.tools.reproduce.algorithm_outcomes import (
    BEST_OF_N,
    check,
    differences,
    halfway,
    read_seed,
    win_rate,
    wins_of_choice,
)
from rlhfctl.tools.reproduce.algorithms import A2C, ALGORITHMS, DPO, PPO, REINFORCE, RLOO_2, RLOO_4, Sizes, dpo_name
from rlhfctl.tools.reproduce.curves import Points, gold_difference
from rlhfctl.tools.reproduce.policies import MEASURED


def test_a_win_is_a_comparison_within_a_prompt_and_a_tie_is_half() -> None:
    """First prompt: 2 beats 1 and ties with 2, 3 beats both; second prompt: 0 loses to both."""
    assert win_rate([[2.0, 3.0], [0.0, 0.0]], [[1.0, 2.0], [9.0, 9.0]]) == pytest.approx((3.5 / 4 + 0) / 2)
    assert win_rate([[1.0], [2.0]], [[1.0], [2.0]]) == 0.5


def test_best_of_n_wins_as_often_as_all_its_draws_do() -> None:
    chooser = np.array([[0.3, 0.1, 0.4, 0.2]])
    gold = np.array([[5.0, 1.0, 1.0, 7.0]])
    wins = []
    for drawn in combinations(range(4), 2):
        best = max(drawn, key=lambda index: chooser[0, index])
        others = [gold[0, index] for index in range(4) if index != best]
        wins.append(np.mean([(gold[0, best] > other) + 0.5 * (gold[0, best] == other) for other in others]))
    assert wins_of_choice(chooser, gold, 2) == pytest.approx(float(np.mean(wins)))
    assert wins_of_choice(chooser, gold, 1) == pytest.approx(0.5)


@pytest.mark.parametrize(("updates", "index"), [([0, 8, 16, 24, 32], 2), ([0, 1, 2, 3], 2), ([0, 5], 1)])
def test_half_is_the_first_evaluation_at_half_of_the_updates(updates: list[int], index: int) -> None:
    assert halfway(updates) == index


def test_equal_kl_is_the_mean_over_the_distances_that_both_reach() -> None:
    """Slopes of 2 and 1: over distances up to 1.5 the difference is d, whose mean over 100 places is 0.7575."""
    assert gold_difference(curve(2.0, 3.0), curve(1.0, 1.5)) == pytest.approx(1.5 * 50.5 / 100)
    bent = Points.at([1.0, 4.0], [0.0, 0.0], [3.0, 0.0])  # gold 3 at distance 1, 0 at distance 2
    flat = Points.at([4.0], [0.0], [0.0])
    assert gold_difference(bent, flat) == pytest.approx(1.5, abs=0.02)
    assert gold_difference(flat, bent) == -gold_difference(bent, flat)


def test_differences_are_paired_by_seed() -> None:
    seeds = [seed(0, {RLOO_4: 3.0, PPO: 2.0}), seed(1, {RLOO_4: 5.0, PPO: 1.0})]
    assert differences(seeds, RLOO_4, "gold") == pytest.approx([1.0, 4.0])
    assert differences(seeds, RLOO_4, "wins") == pytest.approx([0.1, 0.4])
    assert differences(seeds, PPO, "gold") == [0.0, 0.0]


def outcomes(gold: dict[str, float], slopes: dict[str, float] | None = None) -> dict[str, bool | None]:
    return {one.name: one.held for one in check([seed(n, gold, slopes) for n in range(3)])}


def test_the_statements_of_the_paper_hold_where_its_order_does() -> None:
    order = {RLOO_4: 1.5, RLOO_2: 1.4, REINFORCE: 1.3, PPO: 1.0, DPO: 0.5}
    found = outcomes(order, order)
    assert found == dict.fromkeys(found, True) and len(found) == 11


def test_the_statements_fail_where_the_order_is_the_other_way_round() -> None:
    order = {RLOO_4: 0.5, RLOO_2: 1.1, REINFORCE: 0.7, PPO: 1.3, DPO: 2.0, A2C: 0.8}
    found = outcomes(order, order)
    assert found.pop("premise") is True
    assert found == dict.fromkeys(found, False) and len(found) == 10


def test_a_difference_within_the_seeds_cannot_tell_and_a_small_loss_is_no_loss() -> None:
    golds = [{RLOO_4: 1.5, RLOO_2: 1.55}, {RLOO_4: 0.9, RLOO_2: 0.95}, {RLOO_4: 1.0, RLOO_2: 1.05}]
    found = {one.name: one for one in check([seed(n, gold) for n, gold in enumerate(golds)])}
    assert found["RLOO over PPO"].held is None  # by seed 0.5, -0.1 and 0.0
    assert found["four over two"].held is True  # 0.05 less, of 0.2 that are allowed
    assert found["REINFORCE over PPO"].held is None  # no difference at all is not above 0


def test_a_seed_is_read_from_its_files(tmp_path: Path) -> None:
    """The pool's gold has a deviation of 2, its scores one of 1; the reference's answers are worth 1 and score 0."""
    sizes = Sizes(samples=2)
    rows = [
        {"prompt": f"p{i}", "sample": j, "scores": {"reward": i + j * 2**0.5, "gold": i - 8**0.5 * j}}
        for i in range(2)
        for j in range(2)
    ]
    (tmp_path / "reward" / "card").mkdir(parents=True)
    (tmp_path / "reward" / "card" / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_manifest(tmp_path / "reward" / "reward")

    def measured(name: str, gold: float, score: float, kl: float) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        answers = {"gold": [[gold], [gold]], "score": [[score], [score]], "kl": [[kl], [kl]]}
        (tmp_path / name / MEASURED).write_text(json.dumps({"of": [], "answers": answers}))

    measured("base", 1.0, 0.0, 0.0)
    for name in ALGORITHMS:
        measured(name, 5.0, 2.0, 9.0)
        points = [(0, 0.0, 0.5, 1.0), (8, 1.0, 1.5, 2.0), (16, 4.0, 2.5, 4.0)]
        (tmp_path / name / "events.jsonl").write_text("".join(_evaluation(*point) for point in points))
    measured(dpo_name(0.1), 3.0, 1.0, 4.0)
    measured("grpo", 0.0, 1.0, 4.0)
    found = read_seed(7, tmp_path, sizes)
    ppo, dpo, best = found.ends[PPO], found.ends[DPO], found.ends[BEST_OF_N]
    assert (ppo.gold, ppo.score, ppo.kl, ppo.wins) == pytest.approx((2.0, 2.0, 9.0, 1.0))
    assert (dpo.gold, dpo.wins) == pytest.approx((1.0, 1.0))
    assert found.curves[DPO] == Points([2.0], [pytest.approx(1.0)], [pytest.approx(1.0)])
    assert found.curves[PPO].gold == pytest.approx([0.5, 1.5]) and found.half[PPO] == pytest.approx(0.5)
    assert best.wins == 0.0 and best.gold < 0 < best.score  # the higher score has the lower gold
    assert (found.ends["grpo"].broken, ppo.broken, found.broken, best.broken) == (1.0, 0.0, 0.0, 0.0)
    assert (found.seed, found.accuracy) == (7, 0.9)


def _evaluation(step: int, kl: float, score: float, gold: float) -> str:
    values = {"eval_kl": kl, "eval_score": score, "eval_gold": gold}
    return json.dumps({"event": "metrics", "stage": "ppo", "split": "eval", "step": step, "values": values}) + "\n"


def _write_manifest(folder: Path) -> None:
    made = Manifest(
        stage="reward",
        inputs={},
        parents={},
        outputs={},
        fingerprint="f",
        section={},
        layout={},
        seed=7,
        seconds=1.0,
        metrics={"heldout_accuracy": 0.9},
        versions={},
    )
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(made.model_dump_json())
