"""The numbers of `rlhfctl reproduce coste` by hand, and when a statement holds."""

from __future__ import annotations

import pytest
from made_arms import LABELS, arm, seed

from rlhfctl.tools.reproduce.ensemble_outcomes import Arm, check


def test_gold_is_counted_from_the_reference_in_the_given_unit() -> None:
    values = [(0.5, 0.0), (0.9, 1.0), (0.3, 4.0)]
    made = Arm.of({step: {"eval_gold": gold, "eval_kl": kl} for step, (gold, kl) in enumerate(values)}, 0.2)
    assert made.gold == pytest.approx([0.0, 2.0, -1.0]) and made.kl == [0.0, 1.0, 4.0]
    assert (made.peak, made.final, made.fall) == pytest.approx((2.0, -1.0, 3.0))
    assert arm(0.0, -1.0).fall == 1.0  # the reference itself is the peak


@pytest.mark.parametrize(
    ("ensemble", "held"),
    [(arm(0.0, 1.0, 0.9), True), (arm(0.0, 1.0, -1.0), False), (arm(0.0, 1.0, 0.0), None)],
)
def test_statements_hold_where_both_measures_do(ensemble: Arm, held: bool | None) -> None:
    """One model falls by 1.0 and by 1.1, and ends at 0 and -0.1; three seeds, whose t for 95% is 4.30."""
    seeds = [seed(n, arm(0.0, 1.0, -0.1 * (n % 2)), ensemble) for n in range(3)]
    found = {one.name: one for one in check(seeds)}
    assert len(found) == 8
    assert found["premise (clean)"].held is True  # 1.03, above 0.2
    for how in ("mean", "worst score", "mean less variance"):
        for labels in LABELS:
            assert found[f"{how} ({labels})"].held is held
    (fall, final) = found["mean (noisy)"].measures
    assert fall.value == pytest.approx(1.0 + 0.1 / 3 - ensemble.fall)
    assert final.value == pytest.approx(ensemble.final + 0.1 / 3)
