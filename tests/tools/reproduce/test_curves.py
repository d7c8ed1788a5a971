"""Curves are read from the files of runs: units, order, repeated evaluations, ensembles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.reproduce.curves import Curve, Pool, _rl, read_seed
from rlhfctl.tools.reproduce.experiment import PENALTY, SCORES, SMALL_POLICY, Sizes, members, proxy_name

SIZES = Sizes(rows=(10, 20, 30), members=1)


def evaluation(step: int, kl: float, score: float, gold: float) -> dict[str, object]:
    values = {"eval_kl": kl, "eval_score": score, "eval_gold": gold}
    return {"event": "metrics", "stage": "ppo", "split": "eval", "step": step, "values": values}


def write_events(run: Path, points: list[tuple[int, float, float, float]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_text("".join(json.dumps(evaluation(*point)) + "\n" for point in points))


POINTS = [(0, 0.0, 1.0, 5.0), (1, 1.0, 2.0, 7.0), (2, 4.0, 3.0, 9.0), (3, 9.0, 4.0, 6.0)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of one seed: two prompts, four samples each."""
    proxy, gold = np.arange(8.0).reshape(2, 4), np.array([[1.0, 3.0, 2.0, 4.0], [4.0, 2.0, 3.0, 1.0]])
    rows = [
        {"prompt": f"p{i}", "sample": j, "response": "r", "scores": {"reward": proxy[i, j], "gold": gold[i, j]}}
        for i in range(2)
        for j in range(4)
    ]
    card = {
        "accuracy": {"value": 0.8},
        "optimization": {
            "kl": [0.0, 0.19, 0.64, 1.3],
            "proxy": {"mean": [0.0, 0.5, 0.9, 1.2]},
            "gold": {"mean": [0.0, 0.4, 0.6, 0.5]},
        },
    }
    for name in map(proxy_name, SIZES.rows):
        (tmp_path / name / "card").mkdir(parents=True)
        (tmp_path / name / "card" / "card.json").write_text(json.dumps(card))
        (tmp_path / name / "card" / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_events(tmp_path / name, POINTS)
    for name in (PENALTY, SMALL_POLICY):
        write_events(tmp_path / name, POINTS)
    for name, scores in zip(members(SIZES), (proxy, -proxy), strict=True):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / SCORES).write_text(json.dumps({"of": [], "scores": scores.ravel().tolist()}))
    return tmp_path


def test_scores_are_in_standard_deviations_of_the_reference(folder: Path) -> None:
    found = read_seed(7, folder, SIZES)
    assert found.seed == 7 and found.accuracy == dict.fromkeys(SIZES.rows, 0.8)
    deviation = np.sqrt(10 / 6)  # of 0, 1, 2, 3 about 1.5: squares 5, twice, over 2 (4 - 1)
    assert found.rl[20].distance == pytest.approx([1.0, 2.0, 3.0])
    assert found.rl[20].proxy == pytest.approx([1 / deviation, 2 / deviation, 3 / deviation])
    assert found.rl[20].gold == pytest.approx([2 / deviation, 4 / deviation, 1 / deviation])
    assert found.best_of_n[30].distance == pytest.approx(np.sqrt([0.19, 0.64, 1.3]))


def test_each_member_chooses_and_the_ensemble_by_its_mean_and_worst(folder: Path) -> None:
    found = read_seed(7, folder, SIZES)
    assert found.ns == [1, 2, 4]
    deviation = np.sqrt(10 / 6)
    # The proxy's best of four is the last sample: gold 4 and 1, 1.5 above and below the prompts' means.
    assert found.ensembles["one model"][-1] == pytest.approx(0.0)
    # The second member is the opposite: the mean ties all samples, the worst prefers the two in the middle.
    assert found.ensembles["mean"][-1] == pytest.approx(0.0)
    assert found.ensembles["worst"][-1] == pytest.approx(0.0)
    assert found.ensembles["one model"][1] == pytest.approx(np.mean([0.5 * (1 / 6 - 1 / 6), 0]) / deviation)


def test_an_evaluation_that_was_made_again_counts_once(tmp_path: Path) -> None:
    pool = Pool(np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]]))
    write_events(tmp_path, [*POINTS, (3, 16.0, 5.0, 6.0)])
    assert _rl(tmp_path, pool).distance == pytest.approx([1.0, 2.0, 4.0])


def test_what_gives_no_curve_says_why(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="2 points lie away"):
        Curve.of("rl", [0.0, 1.0, 4.0], [0.0] * 3, [0.0] * 3)
    pool = Pool(np.array([[0.0, 2.0]]), np.array([[0.0, 2.0]]))
    write_events(tmp_path, POINTS[1:])
    with pytest.raises(RlhfctlError, match="update 0"):
        _rl(tmp_path, pool)
    write_events(tmp_path, POINTS)
    with pytest.raises(RlhfctlError, match="the same score"):
        _rl(tmp_path, Pool(pool.proxy, np.ones((1, 2))))
