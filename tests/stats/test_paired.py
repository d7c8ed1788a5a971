"""paired.py against hand-computed numbers, SciPy as oracle, a coverage simulation, and mirror images."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from rlhfctl.stats import paired as stats
from rlhfctl.stats.paired import (
    PairedComparison,
    compare_paired,
    distinct_n,
    sign_test,
    verdict,
    wilson_ci,
    win_rate,
)
from rlhfctl.stats.resampling import Interval, bootstrap_mean_ci


def test_importing_stats_leaves_scipy_and_torch_alone() -> None:
    code = "import sys, rlhfctl.stats.paired; sys.exit(sorted({'scipy', 'torch', 'rich'} & set(sys.modules)) != [])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- sign test and win rate


@pytest.mark.parametrize(
    ("wins", "losses"), [(5, 1), (1, 5), (3, 3), (10, 0), (0, 1), (4, 3), (200, 150), (2600, 2400)]
)
def test_sign_test_equals_binomtest(wins: int, losses: int) -> None:
    test = sign_test(np.array([2.0] * wins + [-0.1] * losses + [0.0] * 4))
    assert (test.wins, test.losses, test.ties) == (wins, losses, 4)
    assert test.p_value == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9)


def test_sign_test_by_hand() -> None:
    # 5 of 6: 2 * (C(6,0) + C(6,1)) / 64 = 14/64
    assert sign_test([1, 1, 1, 1, 1, -1, 0]).p_value == 14 / 64
    assert sign_test([0.0, 0.0]) == stats.SignTest(wins=0, losses=0, ties=2, p_value=1.0)


def test_win_rate_counts_a_tie_half() -> None:
    assert win_rate([3.0, -1.0, 0.0, 0.5]) == 0.625
    assert win_rate([0.0]) == 0.5


# --- paired comparison


def test_comparison_by_hand() -> None:
    c = compare_paired([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 1.0, 5.0], seed=0)
    assert (c.n, c.policy_mean, c.reference_mean, c.delta) == (4, 2.5, 2.0, 0.5)
    assert (c.win_rate, c.ties, c.p_value) == (0.625, 1, 1.0)
    assert c.delta_ci95.low < 0 < 0.5 < c.delta_ci95.high
    assert verdict(c) == "undecided"


def test_all_intervals_come_from_the_same_resamples() -> None:
    reference = np.random.default_rng(1).normal(size=40)
    c = compare_paired(reference + 0.25, reference, seed=4)
    assert (c.delta_ci95.low, c.delta_ci95.high) == pytest.approx((0.25, 0.25), abs=1e-12)
    assert c.policy_ci95.low - c.reference_ci95.low == pytest.approx(0.25, abs=1e-12)
    assert c.policy_ci95.high - c.reference_ci95.high == pytest.approx(0.25, abs=1e-12)
    alone = bootstrap_mean_ci(reference, seed=4)
    assert (c.reference_ci95.low, c.reference_ci95.high) == pytest.approx((alone.low, alone.high), rel=1e-12)


def test_pairing_is_what_makes_the_interval_narrow() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, size=100)
    c = compare_paired(hard + rng.normal(0.5, 0.2, size=100), hard, seed=0)
    assert c.delta_ci95.high - c.delta_ci95.low < 0.2 < c.policy_ci95.high - c.policy_ci95.low


def test_rounding_alone_is_a_tie() -> None:
    c = compare_paired([0.1 + 0.2, 1e9, 1.0, 0.0], [0.3, 1e9 * (1 + 1e-13), 1.0 + 1e-9, 0.0], seed=0)
    assert c.ties == 3
    assert c.win_rate == 1.5 / 4
    assert c.delta == pytest.approx(-2.5e-10, rel=1e-6)


def scores(draw_n: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.1, 0.3, 7.0]), min_size=draw_n, max_size=draw_n)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25).flatmap(lambda n: st.tuples(scores(n), scores(n))))
def test_flipping_policy_and_reference_mirrors_everything(pair: tuple[list[float], list[float]]) -> None:
    a = compare_paired(pair[0], pair[1], seed=9, samples=200)
    b = compare_paired(pair[1], pair[0], seed=9, samples=200)
    assert (a.policy_mean, a.policy_ci95) == (b.reference_mean, b.reference_ci95)
    assert (a.ties, a.p_value) == (b.ties, b.p_value)
    assert a.delta == pytest.approx(-b.delta, abs=1e-12)
    assert a.win_rate == pytest.approx(1 - b.win_rate, abs=1e-12)
    assert (a.delta_ci95.low, a.delta_ci95.high) == pytest.approx((-b.delta_ci95.high, -b.delta_ci95.low), abs=1e-12)
    mirrored = (1 - b.win_rate_ci95.high, 1 - b.win_rate_ci95.low)
    assert (a.win_rate_ci95.low, a.win_rate_ci95.high) == pytest.approx(mirrored, abs=1e-12)
    mirror = {"better": "worse", "worse": "better", "undecided": "undecided"}
    # bounds that lie on 0 or 1/2 up to rounding may fall either way
    edges = (a.delta_ci95.low, a.delta_ci95.high, a.win_rate_ci95.low - 0.5, a.win_rate_ci95.high - 0.5)
    if min(abs(edge) for edge in edges) > 1e-9:
        assert verdict(a) == mirror[verdict(b)]


# --- verdict


def comparison(delta: tuple[float, float], rate: tuple[float, float], n: int = 100, ties: int = 0) -> PairedComparison:
    whatever = Interval(0.0, 1.0)
    return PairedComparison(
        n=n,
        policy_mean=0.5,
        policy_ci95=whatever,
        reference_mean=0.5,
        reference_ci95=whatever,
        delta=sum(delta) / 2,
        delta_ci95=Interval(*delta),
        win_rate=sum(rate) / 2,
        win_rate_ci95=Interval(*rate),
        ties=ties,
        p_value=0.5,
    )


@pytest.mark.parametrize(
    ("delta", "rate", "expected"),
    [
        ((0.1, 0.2), (0.51, 0.7), "better"),
        ((-0.2, -0.1), (0.3, 0.49), "worse"),
        ((0.1, 0.2), (0.49, 0.7), "undecided"),
        ((-0.1, 0.2), (0.51, 0.7), "undecided"),
        ((0.1, 0.2), (0.3, 0.49), "undecided"),
        ((-0.2, -0.1), (0.51, 0.7), "undecided"),
        ((0.0, 0.2), (0.51, 0.7), "undecided"),
        ((0.1, 0.2), (0.5, 0.7), "undecided"),
        ((-0.2, 0.0), (0.3, 0.49), "undecided"),
        ((-0.2, -0.1), (0.3, 0.5), "undecided"),
    ],
)
def test_verdict_needs_both_intervals(delta: tuple[float, float], rate: tuple[float, float], expected: str) -> None:
    assert verdict(comparison(delta, rate)) == expected


def test_verdict_end_to_end() -> None:
    reference = np.random.default_rng(3).normal(size=80)
    noise = np.random.default_rng(4).normal(0.0, 0.3, size=80)
    assert verdict(compare_paired(reference + 0.3 + noise, reference, seed=0)) == "better"
    assert verdict(compare_paired(reference - 0.3 + noise, reference, seed=0)) == "worse"
    assert verdict(compare_paired(reference + noise, reference, seed=0)) == "undecided"
    assert verdict(compare_paired(reference, reference, seed=0)) == "undecided"


@pytest.mark.parametrize(("untied", "expected"), [(1, "undecided"), (5, "undecided"), (6, "better")])
def test_too_few_prompts_decide_nothing(untied: int, expected: str) -> None:
    c = compare_paired([1.0] * untied, [0.0] * untied, seed=0)
    assert c.win_rate_ci95 == Interval(1.0, 1.0)  # the bootstrap is sure of itself
    assert (c.p_value < 0.05) == (expected == "better")
    assert verdict(c) == expected
    # ties do not help
    assert verdict(comparison((0.1, 0.2), (0.51, 0.9), n=untied + 50, ties=50)) == expected


# --- wilson, distinct-n, faulty input


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 1), (7, 10), (430, 500)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_equals_scipy(successes: int, n: int, confidence: float) -> None:
    oracle = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    ours = wilson_ci(successes, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


def test_wilson_by_hand() -> None:
    # 0 of n: the upper end is z^2 / (n + z^2)
    z2 = 1.959963984540054**2
    assert wilson_ci(0, 10).low == 0.0
    assert wilson_ci(0, 10).high == pytest.approx(z2 / (10 + z2), rel=1e-12)
    assert wilson_ci(10, 10).high == 1.0


def test_distinct_n_by_hand() -> None:
    responses = [["a", "b", "a", "b"], ["a", "b"]]
    assert distinct_n(responses, 1) == 2 / 6
    assert distinct_n(responses, 2) == 2 / 4  # ab ba ab | ab; never across responses
    assert distinct_n([[1, 2, 3]], 2) == 1.0
    assert distinct_n([["a"], []], 2) == 0.0
    assert distinct_n([], 1) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match=r"values\[2\] is .*finite"):
        bootstrap_mean_ci([0.0, 1.0, bad, bad], seed=0)
    with pytest.raises(ValueError, match=r"differences\[0\]"):
        sign_test([bad])
    with pytest.raises(ValueError, match=r"differences\[1\]"):
        win_rate([1.0, bad])
    with pytest.raises(ValueError, match=r"reference\[1\]"):
        compare_paired([0.0, 1.0], [0.0, bad], seed=0)
    with pytest.raises(ValueError, match=r"policy\[1\]"):
        compare_paired([0.0, bad], [0.0, 1.0], seed=0)


def test_faulty_input_is_refused() -> None:
    for call in (lambda: bootstrap_mean_ci([], seed=0), lambda: sign_test([]), lambda: win_rate([])):
        with pytest.raises(ValueError, match="empty"):
            call()
    with pytest.raises(ValueError, match="2 values and reference 1"):
        compare_paired([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="shape"):
        bootstrap_mean_ci([[1.0]], seed=0)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean_ci([1.0], confidence=95, seed=0)
    with pytest.raises(ValueError, match="samples"):
        bootstrap_mean_ci([1.0], samples=0, seed=0)
    with pytest.raises(ValueError, match="successes"):
        wilson_ci(3, 2)
    with pytest.raises(ValueError, match="n is 0"):
        wilson_ci(0, 0)
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n([["a"]], 0)
