"""Scores normalized by all scores so far, and clipped."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from small_loops import column, share_of_a, trained

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.moments import Moments, scaled_scores


def test_moments_of_batches_are_those_of_all_scores_together() -> None:
    scores = [torch.tensor([1.0, 5.0, -2.0]), torch.tensor([7.5]), torch.tensor([0.0, 0.25])]
    moments = Moments()
    for batch in scores:
        moments = moments.with_scores(batch)
    together = torch.cat(scores).tolist()
    assert moments.count == 6 and moments.mean == pytest.approx(statistics.fmean(together))
    assert moments.deviation == pytest.approx(statistics.stdev(together))
    assert Moments().with_scores(torch.tensor([3.0, 3.0])).deviation == 1.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"normalize_scores": "running"}, [-1.0, 1.0, 0.0]),
        ({"normalize_scores": "running_std"}, [0.0, 2.0, 1.0]),
        ({"score_clip": 3.0}, [0.0, 3.0, 2.0]),
        ({"score_clip": [0.5, 2.5]}, [0.5, 2.5, 2.0]),
        ({"normalize_scores": "running", "score_clip": 0.5}, [-0.5, 0.5, 0.0]),
        ({}, [0.0, 4.0, 2.0]),
    ],
)
def test_scores_are_normalized_then_clipped(options: dict[str, Any], expected: list[float]) -> None:
    raw = torch.tensor([0.0, 4.0, 2.0])  # mean 2, deviation 2
    assert scaled_scores(raw, Moments().with_scores(raw), Ppo(**options)).tolist() == expected


def test_the_loop_normalizes_by_all_scores_so_far(tmp_path: Path) -> None:
    def scores(episodes: Any) -> list[float]:
        return [100.0 + 10 * score for score in share_of_a(episodes)]

    loop = trained(tmp_path, 3, normalize_scores="running", score_clip=[-9.0, 1.0], score=scores)
    seen: list[float] = []
    for batch in loop.batches:
        seen += batch.raw_scores.tolist()
        due = [min((raw - statistics.fmean(seen)) / statistics.stdev(seen), 1.0) for raw in batch.raw_scores.tolist()]
        assert batch.scores.tolist() == pytest.approx(due, abs=1e-4)
    assert column(loop, "raw_score")[0] > 90 > 2 > abs(column(loop, "score")[0])


def test_a_missing_end_keeps_its_fixed_score(tmp_path: Path) -> None:
    options = {"normalize_scores": "running", "score_clip": 0.1, "missing_eos_score": -1.0}
    (batch,) = trained(tmp_path, **options).batches
    assert not batch.ended.all()
    assert (batch.scores[~batch.ended] == -1.0).all() and (batch.scores[batch.ended].abs() <= 0.1).all()
