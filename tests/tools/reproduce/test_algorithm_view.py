"""The view and the JSON of `rlhfctl reproduce rloo` hold every algorithm and every statement, in 100 columns."""

from __future__ import annotations

import io
import json

from made_algorithms import seed
from rich.console import Console

from rlhfctl.tools.reproduce import algorithm_view
from rlhfctl.tools.reproduce.algorithm_outcomes import ROWS, check
from rlhfctl.tools.reproduce.algorithms import CHOSEN, DPO, PPO, RLOO_4, Sizes

SEEDS = [seed(n, {RLOO_4: 1.5 + 0.1 * n, DPO: 0.5}, {RLOO_4: 2.0}) for n in range(3)]


def test_the_view_has_a_row_per_algorithm_and_fits_into_100_columns() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    statements = check(SEEDS)
    for part in algorithm_view.view(SEEDS, statements, Sizes()):
        console.print(part)
    lines = out.getvalue().splitlines()
    for name in ROWS:
        assert len([line for line in lines if line.startswith(f"{name} ")]) >= 3, name  # in each table
    (row, *_) = [line for line in lines if line.startswith(f"{RLOO_4} ")]
    assert row.split()[1:7] == ["0.50", "+-0.00", "1.61", "+-0.27", "0.60", "+-0.25"]
    assert not any("…" in line for line in lines)
    for one in statements:
        assert any(line.startswith(f"{one.name}: ") for line in lines)


def test_the_json_has_the_numbers_by_seed() -> None:
    result = json.loads(json.dumps(algorithm_view.to_json(SEEDS, check(SEEDS), Sizes())))
    assert result["seeds"][2]["ends"][RLOO_4]["gold"] == 1.5 + 0.2 + 0.02
    assert result["gold_at_equal_kl"][RLOO_4][PPO] == [seed.at_equal_kl(RLOO_4, PPO) for seed in SEEDS]
    assert result["step_sizes"] == dict(CHOSEN) and result["sizes"]["episodes"] == Sizes().episodes
    assert len(result["statements"]) == 11
