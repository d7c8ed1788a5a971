"""Thinned curves, histograms, groups and effects of length, against numbers worked out by hand and against scipy."""

from __future__ import annotations

import math
from random import Random

import pytest
from scipy.stats import spearmanr

from rlhfctl.report.facts.measures import (
    by_prompt,
    changed_most,
    cost_of,
    length_effect,
    prompt_groups,
    reference_std,
    score_bins,
    share_below,
    thin,
)
from rlhfctl.report.facts.records import Pair, Stage


def pair(
    prompt: str,
    policy: float,
    reference: float,
    *,
    lengths: tuple[float, float] = (1, 1),
    source: str = "",
    seed: str = "",
) -> Pair:
    scores = ({"gold": policy}, {"gold": reference})
    return Pair(prompt, 0, "a", "b", *scores, *lengths, source=source, seed=seed)


# ---------------------------------------------------------------- curves


def test_a_short_curve_keeps_every_point() -> None:
    found = thin([(1, 1.0), (2, math.nan), (3, 5.0)], most=10)
    assert [(one.step, one.mean, one.low, one.high, one.count) for one in found] == [(1, 1, 1, 1, 1), (3, 5, 5, 5, 1)]


def test_a_long_curve_is_merged_into_means_with_their_range() -> None:
    found = thin([(step, float(step % 3)) for step in range(1, 8)], most=3)
    # seven points, three each: (1, 2, 0), (1, 2, 0), (1)
    assert [(one.step, one.mean, one.low, one.high, one.count) for one in found] == [
        (3, 1.0, 0.0, 2.0, 3), (6, 1.0, 0.0, 2.0, 3), (7, 1.0, 1.0, 1.0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 249, 250, 251, 1999, 2000])
def test_thinning_loses_no_report_and_no_extreme(count: int) -> None:
    values = [Random(step).gauss(0, 1) for step in range(count)]
    found = thin(list(enumerate(values)))
    assert len(found) <= 250
    assert sum(one.count for one in found) == count
    assert sum(one.mean * one.count for one in found) == pytest.approx(sum(values))
    assert (min(one.low for one in found), max(one.high for one in found)) == (min(values), max(values))


# ---------------------------------------------------------------- scores


def test_bins_hold_shares_of_both_sides() -> None:
    found = score_bins([pair("a", 1, 0), pair("b", 1, 0), pair("c", 0.5, 1), pair("d", 1, 0)], "gold")
    assert sum(one.policy for one in found) == pytest.approx(1) and sum(
        one.reference for one in found
    ) == pytest.approx(1)
    assert (found[0].low, found[-1].high) == (0, 1)
    assert (found[0].policy, found[0].reference) == (0, 0.75)
    assert (found[-1].policy, found[-1].reference) == (0.75, 0.25)
    assert score_bins([], "gold") == [] and score_bins([pair("a", 1, 0)], "other") == []


def test_equal_scores_are_one_bin() -> None:
    found = score_bins([pair("a", 2, 2), pair("b", 2, 2)], "gold")
    assert len(found) == 1 and found[0].policy == found[0].reference == 1


def test_a_prompt_is_the_mean_of_its_samples_and_seeds_are_apart() -> None:
    found = by_prompt([pair("a", 1, 0), pair("a", 3, 1), pair("b", 5, 5), pair("a", 7, 7, seed="seed 1")], "gold")
    assert [(one.prompt, one.policy, one.reference) for one in found] == [("a", 2, 0.5), ("b", 5, 5), ("a", 7, 7)]


def test_groups_are_of_sources_and_of_thirds_by_length() -> None:
    rows = [pair("x" * (n + 1), float(n % 2), 0.5, source="even" if n % 2 else "odd") for n in range(30)]
    found = dict(prompt_groups(by_prompt(rows, "gold")))
    assert [(one.name, one.prompts, one.win_rate) for one in found["data source"]] == [
        ("even", 15, 1.0),
        ("odd", 15, 0.0),
    ]
    thirds = found["length of the prompt"]
    assert [one.prompts for one in thirds] == [10, 10, 10]
    assert [one.name for one in thirds] == ["up to 10 characters", "11 to 20 characters", "more than 20 characters"]
    assert all(one.win_rate == 0.5 and one.interval is not None for one in thirds)
    assert all(one.interval is not None and one.interval[0] < 0.5 < one.interval[1] for one in thirds)


def test_one_group_is_none() -> None:
    assert prompt_groups(by_prompt([pair("aa", 1, 0), pair("bb", 0, 1)], "gold")) == []
    assert prompt_groups([]) == []


def test_a_small_group_has_no_interval() -> None:
    ((_, groups),) = prompt_groups(by_prompt([pair("a" * n, 1, 0) for n in range(1, 7)], "gold"))
    assert [one.interval for one in groups] == [None, None, None]


def test_the_largest_changes_are_one_per_prompt_in_order() -> None:
    rows = [pair("a", 5, 0), pair("a", 9, 0), pair("b", 1, 0), pair("c", 0, 3), pair("d", 0, 4), pair("e", 2, 2)]
    gains, losses = changed_most(rows, "gold", 3)
    assert [(one.prompt, one.change("gold")) for one in gains] == [("a", 9), ("b", 1)]
    assert [(one.prompt, one.change("gold")) for one in losses] == [("d", -4), ("c", -3)]
    assert changed_most(rows, "gold", 1)[0] == gains[:1]


def test_the_reference_gives_the_scale() -> None:
    rows = [pair("a", 3, 1), pair("b", 3, 2), pair("c", 3, 3), pair("d", 3, 6)]
    assert share_below(rows, "gold") == 0.5  # 1 and 2 lie below the mean of 3
    assert reference_std(rows, "gold") == pytest.approx(math.sqrt(3.5))  # mean 3: (4 + 1 + 0 + 9) / 4
    assert share_below([], "gold") is None and reference_std(rows, "other") is None
    assert reference_std([pair("a", 1, 1), pair("b", 1, 1)], "gold") is None


# ---------------------------------------------------------------- length


def test_the_correlation_with_length_is_scipys() -> None:
    draw = Random(0)
    rows = [pair(f"p{n}", 0, draw.gauss(0, 1), lengths=(1, float(draw.randint(1, 9)))) for n in range(60)]
    found = length_effect(rows, "gold")
    expected = spearmanr([row.reference_length for row in rows], [row.reference_scores["gold"] for row in rows])
    assert found is not None and found.correlation == pytest.approx(expected.statistic)


def test_wins_are_counted_where_the_policy_is_longer_and_where_it_is_shorter() -> None:
    longer = [pair(f"l{n}", 1, 0, lengths=(9, 3)) for n in range(6)]
    shorter = [pair(f"s{n}", 0, 1, lengths=(2, 3)) for n in range(6)]
    found = length_effect([*longer, *shorter, pair("same", 1, 0, lengths=(3, 3))], "gold")
    assert found is not None and found.longer is not None and found.shorter is not None
    assert (found.longer.win_rate, found.longer.prompts) == (1.0, 6)
    assert (found.shorter.win_rate, found.shorter.prompts) == (0.0, 6)
    assert found.correlation is None  # every reference has three tokens
    assert ("reference", 3.0, pytest.approx(6 / 13), 13) in found.curve
    assert length_effect([], "gold") is None


# ---------------------------------------------------------------- costs


def test_ppos_tokens_are_lengths_times_episodes_of_an_update() -> None:
    settings = {"updates": 2, "total_episodes": 32}
    stage = Stage("ppo", "complete", settings=settings, curves={"length": [(1, 10.0), (2, 20.0)]}, seconds=3.0)
    cost = cost_of(stage)
    assert cost.tokens == 16 * 10 + 16 * 20 and cost.seconds == 3.0 and cost.peak_memory is None


def test_training_reports_its_tokens_and_others_are_not_known() -> None:
    assert cost_of(Stage("sft", "complete", curves={"num_tokens": [(1, 10.0), (2, 25.0)]})).tokens == 25
    assert cost_of(Stage("compare", "complete")).tokens is None
