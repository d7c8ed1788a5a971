"""many.py: statsmodels as oracle, and the promise that a false finding is rare."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from rlhfctl.stats.many import holm


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_it_is_that_of_statsmodels(count: int) -> None:
    p_values = (np.random.default_rng(count).random(count) ** 3).round(2).tolist()  # small ones and equal ones
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    with pytest.raises(ValueError, match="no p-value"):
        holm([0.5, 1.5])


def test_a_false_finding_is_as_rare_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    found = [min(holm(rng.random(10).tolist())) <= 0.05 for _ in range(2_000)]
    assert np.mean(found) <= 0.065
