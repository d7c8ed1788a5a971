"""The contract of a user's scorer, whoever answers: what is asked at once, and which columns are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from small_episodes import episodes

from rlhfctl.errors import RewardFailed
from rlhfctl.rewards.checked import Checked, columns_of, shown
from rlhfctl.rewards.episode import Episode


class Lengths(Checked):
    """Score a completion by its length, and remember how many were asked at once."""

    def _called(self, batch: Sequence[Episode]) -> Any:
        self.sizes = [*getattr(self, "sizes", []), len(batch)]
        return [len(one.completion) or None for one in batch]


def test_a_scorer_is_asked_in_batches_and_none_counts_as_0() -> None:
    said: list[str] = []
    scorer = Lengths("mine", batch_size=2, say=said.append)
    assert scorer.optional(episodes("a", "", "abc")) == [1.0, None, 3.0] and scorer.sizes == [2, 1]
    assert scorer(episodes("a", "", "abc")) == [1.0, 0.0, 3.0]
    assert said == ["1 of 3 responses are scored by no reward function (None): they count as 0"]


def test_numbers_that_are_not_finite_pass_where_the_engine_keeps_the_batch() -> None:
    class Endless(Checked):
        def _called(self, batch: Sequence[Episode]) -> Any:
            return [float("inf")] * len(batch)

    assert Endless("mine", finite=False).optional(episodes("a")) == [float("inf")]
    with pytest.raises(RewardFailed, match="mine: the reward function returned inf for completion 'a'"):
        Endless("mine").optional(episodes("a"))


def test_columns_are_lists_with_a_value_for_each_row() -> None:
    batch = [*episodes("a", answer=[3]), *episodes("b", level=["x"])]
    assert columns_of(batch, {"prompt"}) == {"answer": [3, None], "level": [None, "x"]}
    assert shown(batch[0]) == "completion 'a' to prompt 'prompt 0'"
