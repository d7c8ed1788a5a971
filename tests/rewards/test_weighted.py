"""A weighted sum of scorers, with rows that some of them skip."""

from __future__ import annotations

from pathlib import Path

from small_episodes import episodes

from rlhfctl.rewards.episode import part_means, parts_of
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.weighted import WeightedReward


def test_a_weighted_sum_leaves_out_the_parts_that_pass_a_row_over(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "parts.py").write_text(
        "def first(prompts, completions): return [1.0, None, None]\n"
        "def second(prompts, completions): return [10.0, 20.0, None]\n"
    )
    one, two = (FunctionReward(f"parts:{name}", tmp_path) for name in ("first", "second"))
    weighted = WeightedReward({"first": (one, 2.0), "second": (two, 0.5)}, said.append)
    assert weighted(episodes("a", "b", "c")) == [7.0, 10.0, 0.0]
    assert parts_of(weighted) == {"first": [1.0, None, None], "second": [10.0, 20.0, None]}
    assert part_means(weighted.parts) == {"reward/first": 1.0, "reward/second": 15.0}
    assert len(said) == 1
