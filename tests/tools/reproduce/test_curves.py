"""Curves are read from the files of runs: units, order, repeated evaluations, ensembles."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.stats import best_of_n
from rlhfctl.tools.reproduce.curves import (
    VARIANCE_WEIGHT,
    Curve,
    Units,
    _rl,
    agreement,
    choosers,
    common,
    read_seed,
)
from rlhfctl.tools.reproduce.experiment import PENALTY, SCORES, SMALL_POLICY, Sizes, members, pool_file, proxy_name

SIZES = Sizes(rows=(10, 20, 30), members=1)
PROXY = np.arange(16.0).reshape(2, 8)
GOLD = np.array([[1.0, 3.0, 2.0, 4.0, 6.0, 5.0, 7.0, 8.0], [4.0, 2.0, 3.0, 1.0, 8.0, 6.0, 7.0, 5.0]])
DEVIATION = math.sqrt(6.0)  # of 1 to 8, and of 0 to 7: squares of 42 in sum, over 7


def evaluation(step: int, kl: float, score: float, gold: float) -> dict[str, object]:
    values = {"eval_kl": kl, "eval_score": score, "eval_gold": gold}
    return {"event": "metrics", "stage": "ppo", "split": "eval", "step": step, "values": values}


def write_events(run: Path, points: list[tuple[int, float, float, float]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_text("".join(json.dumps(evaluation(*point)) + "\n" for point in points))


POINTS = [(0, 0.0, 1.0, 5.0), (1, 1.0, 2.0, 7.0), (2, 4.0, 3.0, 9.0), (3, 9.0, 4.0, 6.0)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of one seed: two prompts, eight samples each."""
    rows = [
        {"prompt": f"p{i}", "sample": j, "response": "r", "scores": {"reward": 0.0, "gold": GOLD[i, j]}}
        for i in range(2)
        for j in range(8)
    ]
    pool = pool_file(tmp_path, SIZES)
    pool.parent.mkdir(parents=True)
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in (*map(proxy_name, SIZES.rows), PENALTY, SMALL_POLICY):
        write_events(tmp_path / name, POINTS)
    scores = {proxy_name(10): GOLD, proxy_name(20): PROXY, proxy_name(30): -GOLD, members(SIZES)[1]: -PROXY}
    for name, found in scores.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / SCORES).write_text(json.dumps({"of": [], "scores": found.ravel().tolist()}))
    return tmp_path


def test_scores_are_in_standard_deviations_of_the_reference(folder: Path) -> None:
    found = read_seed(7, folder, SIZES)
    assert found.seed == 7
    assert found.rl[20].distance == pytest.approx([1.0, 2.0, 3.0])
    assert found.rl[20].proxy == pytest.approx([1 / DEVIATION, 2 / DEVIATION, 3 / DEVIATION])
    assert found.rl[20].gold == pytest.approx([2 / DEVIATION, 4 / DEVIATION, 1 / DEVIATION])


def test_each_proxy_chooses_from_the_one_pool(folder: Path) -> None:
    found = read_seed(7, folder, SIZES)
    assert found.ns == [1, 2, 4, 8]
    assert found.best_of_n[10].distance == pytest.approx([math.sqrt(best_of_n.kl_bound(n)) for n in (2, 4, 8)])
    assert found.best_of_n[10].gold[-1] == pytest.approx(3.5 / DEVIATION)
    assert found.best_of_n[10].proxy == found.best_of_n[10].gold  # it scores as gold does
    assert found.best_of_n[30].gold[-1] == pytest.approx(-3.5 / DEVIATION)
    pairs = list(combinations(range(8), 2))  # this proxy likes the later sample of two
    chosen = np.mean([row[later] - 4.5 for row in GOLD for _, later in pairs])
    assert found.best_of_n[20].gold[0] == pytest.approx(chosen / DEVIATION)
    assert found.agreement[10] == 1.0 and found.agreement[30] == 0.0
    assert found.agreement[20] == np.mean([row[later] > row[first] for row in GOLD for first, later in pairs])


def test_pairs_that_gold_ties_do_not_count_and_those_of_the_proxy_count_half() -> None:
    gold = np.array([[0.0, 0.0, 1.0]])
    assert agreement(np.array([[0.0, 1.0, 1.0]]), gold) == 0.75
    with pytest.raises(RlhfctlError, match="gold gives all samples"):
        agreement(gold, np.zeros((1, 3)))


def test_each_member_chooses_and_the_ensemble_by_all_of_them(folder: Path) -> None:
    found = read_seed(7, folder, SIZES)
    last, first = GOLD[:, -1].mean() - 4.5, GOLD[:, 0].mean() - 4.5  # what the proxy and its opposite like best
    assert [one.gold[-1] for one in found.single] == pytest.approx([last / DEVIATION, first / DEVIATION])
    # The mean ties all samples; the worst prefers the two in the middle.
    assert found.ensembles["mean"].gold[-1] == pytest.approx(0.0)
    assert found.ensembles["worst"].gold[-1] == pytest.approx((GOLD[:, 3:5].mean() - 4.5) / DEVIATION)
    assert found.single[0].fall == pytest.approx(max(found.single[0].gold) - found.single[0].gold[-1])


def test_an_ensemble_avoids_what_its_members_disagree_on() -> None:
    of_members = [np.array([[0.0, 1.0, 5.0]]), np.array([[0.0, 1.0, -1.0]])]
    found = choosers(of_members)
    assert int(found["mean"].argmax()) == 2
    assert int(found["worst"].argmax()) == 1
    assert int(found["mean less variance"].argmax()) == 1
    assert found["mean less variance"][0, 2] == pytest.approx(2.0 - VARIANCE_WEIGHT * 9.0)


def test_a_curve_begins_at_the_reference() -> None:
    found = Curve.of("rl", [4.0, 9.0, 16.0], [1.0, 2.0, 3.0], [2.0, 1.0, 0.0])
    assert found.gold_at(np.array([0.0, 1.0, 2.5])) == pytest.approx([0.0, 1.0, 1.5])
    assert found.gold_at(np.array([0.5, 1.5]), "proxy") == pytest.approx([1.0, 1.5])
    assert found.proxy_at(np.array([1.0])) == pytest.approx([0.5])
    assert found.highest == 0 and found.fall == 2.0
    near = Curve.of("best_of_n", [1.0, 2.0, 2.25], [1.0, 1.5, 5.0], [1.0, 1.0, 2.0])
    assert common(found, near)[-1] == pytest.approx(1.5) and common(found, near, "proxy")[-1] == pytest.approx(3.0)


def test_an_evaluation_that_was_made_again_counts_once(tmp_path: Path) -> None:
    pool = Units(np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]]))
    write_events(tmp_path, [*POINTS, (3, 16.0, 5.0, 6.0)])
    assert _rl(tmp_path, pool).distance == pytest.approx([1.0, 2.0, 4.0])


def test_evaluations_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    pool = Units(np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]]))
    write_events(tmp_path, [*POINTS, (4, 100.0, 9.0, 9.0), *POINTS])
    assert _rl(tmp_path, pool).distance == pytest.approx([1.0, 2.0, 3.0])


def test_what_gives_no_curve_says_why(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="2 points lie away"):
        Curve.of("rl", [0.0, 1.0, 4.0], [0.0] * 3, [0.0] * 3)
    with pytest.raises(RlhfctlError, match="gold is the same"):
        Curve.of("rl", [1.0, 2.0, 4.0], [0.0, 1.0, 2.0], [0.0] * 3)
    pool = Units(np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]]))
    write_events(tmp_path, POINTS[1:])
    with pytest.raises(RlhfctlError, match="update 0"):
        _rl(tmp_path, pool)
    write_events(tmp_path, POINTS)
    with pytest.raises(RlhfctlError, match="the same score"):
        _rl(tmp_path, Units(pool.proxy, np.ones((1, 2))))
