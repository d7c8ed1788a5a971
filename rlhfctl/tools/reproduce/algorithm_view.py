"""Show the result of `rlhfctl reproduce rloo`: the algorithms at equal samples and at equal KL, and the statements.

Pure drawing, for a terminal of 100 columns or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl.tools.reproduce.algorithm_outcomes import BEST_OF_N, ROWS, Seed, differences, numbers
from rlhfctl.tools.reproduce.algorithms import CHOSEN, DPO, PPO, Sizes
from rlhfctl.tools.reproduce.statements import Statement
from rlhfctl.tools.reproduce.view import draw_statements, spread, statement_as_json, table_of

_NOTES = (
    "Gold and score (the reward model's) are in standard deviations of the reference's samples to one prompt; the "
    "reference is 0. wins: the share of comparisons with the reference that gold decides for the policy. KL: in nats "
    "per response; of best of n its upper bound. broken: the share of answers whose gold is 0. +-: half of the 95% "
    "interval over seeds (Student's t). less ppo: the difference by seed, so its interval is that of pairs. At equal "
    "KL: the mean difference of gold over the distances (square root of the KL) that both reach; reach: the farthest "
    "distance."
)


def view(seeds: Sequence[Seed], statements: Sequence[Statement], sizes: Sizes) -> Iterator[RenderableType]:
    """Draw the tables, then the statements, then which of them held."""
    yield Text(f"{len(seeds)} seeds: {', '.join(str(seed.seed) for seed in seeds)}", "bold")
    yield Text(f"the reward model is right on held-out pairs: {spread([seed.accuracy for seed in seeds])}")
    yield Text(f"\nat equal samples: {sizes.episodes:,} responses, kl_coef {sizes.kl_coef:g}", "bold")
    yield _ends(seeds)
    yield Text(
        f"{DPO} samples nothing: it reads the {sizes.rows:,} pairs of the reward model (beta {sizes.beta:g}). "
        f"{BEST_OF_N} samples {sizes.samples} responses per prompt when it is used."
    )
    yield Text("\nwhat was optimized, at equal samples: the reward model's score", "bold")
    yield _rewards(seeds)
    yield Text(f"broken, the reference: {spread([seed.broken for seed in seeds])}")
    yield Text(f"step sizes (--choose): {', '.join(f'{name} {step:g}' for name, step in CHOSEN.items())}")
    yield Text("\nat equal KL: gold", "bold")
    yield _at_equal_kl(seeds)
    yield Text(_NOTES, "dim")
    yield from draw_statements("statements", statements)


def _ends(seeds: Sequence[Seed]) -> Table:
    table = table_of("algorithm", "half, gold", "end, gold", f"less {PPO}", "wins", f"less {PPO}")
    for name in ROWS:
        half = spread([seed.half[name] for seed in seeds]) if name in seeds[0].half else ""
        cells = [half, spread(numbers(seeds, name, "gold")), _less_ppo(seeds, name, "gold")]
        table.add_row(name, *cells, spread(numbers(seeds, name, "wins")), _less_ppo(seeds, name, "wins"))
    return table


def _rewards(seeds: Sequence[Seed]) -> Table:
    table = table_of("algorithm", "score", f"less {PPO}", "KL", "broken")
    for name in ROWS:
        score, *others = (spread(numbers(seeds, name, what)) for what in ("score", "kl", "broken"))
        table.add_row(name, score, _less_ppo(seeds, name, "score"), *others)
    return table


def _less_ppo(seeds: Sequence[Seed], name: str, what: str) -> str:
    return "" if name == PPO else spread(differences(seeds, name, what))


def _at_equal_kl(seeds: Sequence[Seed]) -> Table:
    table = table_of("algorithm", "reach", f"less {PPO}", f"less {DPO}", f"less {BEST_OF_N}")
    for name in ROWS:
        others = (PPO, DPO, BEST_OF_N)
        cells = ["" if name == other else spread([seed.at_equal_kl(name, other) for seed in seeds]) for other in others]
        table.add_row(name, spread([seed.curves[name].reach for seed in seeds]), *cells)
    return table


def to_json(seeds: Sequence[Seed], statements: Sequence[Statement], sizes: Sizes) -> dict[str, Any]:
    """Return the sizes, step sizes, all points, measures and outcomes for scripts; intervals as [low, high]."""
    pairs = {
        name: {other: [seed.at_equal_kl(name, other) for seed in seeds] for other in ROWS if other != name}
        for name in ROWS
    }
    return {
        "sizes": asdict(sizes),
        "step_sizes": dict(CHOSEN),
        "seeds": [asdict(seed) for seed in seeds],
        "gold_at_equal_kl": pairs,
        "statements": [statement_as_json(one) for one in statements],
    }
