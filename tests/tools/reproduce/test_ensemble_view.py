"""The view and the JSON of `rlhfctl reproduce coste` hold every arm and every statement."""

from __future__ import annotations

import json

from made_arms import arm, seed

from rlhfctl.tools.reproduce import ensemble_view
from rlhfctl.tools.reproduce.ensemble_outcomes import check
from rlhfctl.tools.reproduce.ensembles import Sizes


def test_the_view_and_the_json_hold_every_arm() -> None:
    seeds = [seed(n, arm(0.0, 1.0, 0.1 * n), arm(0.0, 1.0, 0.9)) for n in range(3)]
    outcomes = check(seeds)
    assert len(list(ensemble_view.view(seeds, outcomes))) > 10
    result = json.loads(json.dumps(ensemble_view.to_json(seeds, outcomes, Sizes())))
    assert result["seeds"][2]["arms"]["noisy"]["min"]["gold"] == [0.0, 1.0, 0.9]
    assert len(result["statements"]) == 8 and result["sizes"]["members"] == 5
