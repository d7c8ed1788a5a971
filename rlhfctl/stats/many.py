"""Correct p-values for the number of comparisons.

With twenty comparisons at the 5% level, one finds something by chance on average. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method, in their order: reject those that are below the level afterwards.

    Sorted upwards, p(1) <= ... <= p(m): adjusted p(i) = max over j <= i of min(1, (m - j + 1) p(j)). Holm, A simple
    sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979). The chance of any false
    rejection is at most the level, however the comparisons depend on each other: judges of the same responses do. It
    rejects all that Bonferroni's rejects, and more.
    """
    bad = [p for p in p_values if not 0 <= p <= 1]
    if bad:
        raise ValueError(f"{bad[0]} is no p-value: it must lie in 0..1")
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
