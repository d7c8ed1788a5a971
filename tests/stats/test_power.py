"""power.py against SciPy's sign test on simulated and enumerated outcomes, and numbers of a textbook."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from rlhfctl.stats.power import MOST_PROMPTS, prompts_to_settle, sign_test_power


@pytest.mark.parametrize(("decided", "share"), [(1, 0.9), (5, 0.9), (6, 1.0), (20, 0.75), (41, 0.6), (200, 0.5)])
def test_power_is_the_sum_over_outcomes_that_the_test_rejects(decided: int, share: float) -> None:
    rejected = [k for k in range(decided + 1) if binomtest(k, decided, 0.5).pvalue <= 0.05]
    assert sign_test_power(decided, share) == pytest.approx(sum(binom.pmf(k, decided, share) for k in rejected))


def test_power_at_one_half_is_at_most_the_level() -> None:
    assert all(sign_test_power(n, 0.5) <= 0.05 for n in range(1, 300))


@pytest.mark.parametrize("share", [0.55, 0.6, 0.7, 0.9])
def test_the_number_is_the_smallest_that_keeps_the_power(share: float) -> None:
    needed = prompts_to_settle(round(100 * share), round(100 * (1 - share)))
    assert needed is not None
    assert all(sign_test_power(n, share) >= 0.8 for n in range(needed, needed + 400))
    assert sign_test_power(needed - 1, share) < 0.8


def test_by_simulation() -> None:
    needed = prompts_to_settle(65, 35)
    assert needed is not None
    wins = np.random.default_rng(0).binomial(needed, 0.65, size=4_000)
    decided = {k: binomtest(k, needed, 0.5).pvalue <= 0.05 for k in set(wins.tolist())}
    assert np.mean([decided[k] for k in wins.tolist()]) == pytest.approx(sign_test_power(needed, 0.65), abs=0.02)


def test_ties_cost_prompts_and_sides_do_not_matter() -> None:
    plain = prompts_to_settle(60, 40)
    assert plain is not None
    assert prompts_to_settle(40, 60) == plain
    assert prompts_to_settle(60, 40, 100) == 2 * plain


def test_what_no_number_settles() -> None:
    assert prompts_to_settle(50, 50) is None
    assert prompts_to_settle(0, 0, 10) is None
    assert prompts_to_settle(MOST_PROMPTS + 1, MOST_PROMPTS) is None
    for counts in ((-1, 2, 0), (0, 0, 0)):
        with pytest.raises(ValueError, match="at least one prompt"):
            prompts_to_settle(*counts)
    with pytest.raises(ValueError, match="no tie"):
        sign_test_power(0, 0.6)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        sign_test_power(5, 1.2)


def test_all_won_needs_six() -> None:
    assert prompts_to_settle(3, 0) == 6  # 2 / 2**6 < 0.05 < 2 / 2**5
