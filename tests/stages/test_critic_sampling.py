"""Critic sampling: where a program is cut, which programs are continued, and what is measured on a tiny run."""

from __future__ import annotations

import pytest

from rlhfctl.stages.critic_sampling import best_prefix, seeds_of, sentence


@pytest.mark.parametrize(
    ("chances", "length"),
    [([0.2, 0.9, 0.4, 0.1], 2), ([0.5, 0.5, 0.5], 1), ([0.1, 0.2, 0.9], 2), ([0.3, 0.1], 1), ([0.7], 0), ([], 0)],
)
def test_a_program_is_cut_at_its_best_beginning_and_never_kept_whole(chances: list[float], length: int) -> None:
    assert best_prefix(chances) == length


def test_programs_that_pass_the_examples_are_continued_the_most_promising_first() -> None:
    chances = [[0.9, 0.1, 0.0], [0.2, 0.3, 0.0], [0.1, 0.6, 0.0]]
    assert seeds_of(chances, [False, True, True], 3) == [(2, 2), (1, 2), (2, 2)]
    assert seeds_of(chances, [False, False, False], 3) == [(0, 1), (2, 2), (1, 2)]


def test_the_sentence_gives_both_ways_and_their_difference() -> None:
    difference = {key: {"delta": 0.125, "ci95": [0.01, 0.2]} for key in ("any", "mean")}
    ways = {"plain": {"any": 0.5, "mean": 0.25}, "critic": {"any": 0.625, "mean": 0.375}}
    said = sentence({"samples": 8, "difference": difference} | ways)
    assert "62.5% of the prompts, 50.0% with plain sampling (difference +0.125 [0.010, 0.200])" in said
    assert "37.5% and 25.0% pass" in said
