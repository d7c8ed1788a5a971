"""Show the result of `rlhfctl reproduce christiano`: accuracy by labels, what was asked, and the statements that held.

Pure drawing, for a terminal of 80 columns or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl.stats.resampling import Interval
from rlhfctl.stats.scaling import over_seeds
from rlhfctl.tools.reproduce.queries import ACTIVE, ORDERS, RANDOM, Sizes
from rlhfctl.tools.reproduce.query_outcomes import Seed
from rlhfctl.tools.reproduce.statements import Statement
from rlhfctl.tools.reproduce.view import draw_statements, spread, statement_as_json, table_of

_NOTES = (
    "Accuracy: share of held-out pairs that the members' mean orders as gold does. +-: half of the 95% interval over "
    "seeds (Student's t). In the first round both orders ask the same questions. tied: gold is the same for both "
    "responses. wrong: answers against gold, of the others. broken: a response has gold 0. gap: distance of the two "
    "responses' gold."
)
_ASKED = ("tied", "wrong", "broken", "gap", "repeated")


def view(seeds: Sequence[Seed], statements: Sequence[Statement]) -> Iterator[RenderableType]:
    """Draw the tables, the labels needed, the statements, then which of them held."""
    yield Text(f"{len(seeds)} seeds: {', '.join(str(seed.seed) for seed in seeds)}", "bold")
    yield Text("\nheld-out accuracy of the reward model", "bold")
    yield _accuracy(seeds)
    ratio, interval = labels_ratio(seeds)
    yield Text("\nlabels needed for the highest accuracy that both orders reach", "bold")
    yield _needed(seeds)
    yield Text(f"active over random: {ratio:.2f} [{interval.low:.2f}, {interval.high:.2f}], the geometric mean")
    yield Text("\nquestions asked after the first round", "bold")
    yield _questions(seeds)
    yield Text(_NOTES, "dim")
    yield from draw_statements("statements", statements)


def labels_ratio(seeds: Sequence[Seed]) -> tuple[float, Interval]:
    """Compute how many labels active choice needs for one of random order: the geometric mean, with its interval."""
    mean, interval = over_seeds([seed.saved for seed in seeds])
    return 2**-mean, Interval(2**-interval.high, 2**-interval.low)


def _accuracy(seeds: Sequence[Seed]) -> Table:
    table = table_of("labels", RANDOM, ACTIVE, "active less random")
    for place, budget in enumerate(seeds[0].budgets):
        orders = (spread([seed.accuracy[order][place] for seed in seeds], 3) for order in ORDERS)
        table.add_row(str(budget), *orders, spread([seed.difference(place) for seed in seeds], 3))
    return table


def _needed(seeds: Sequence[Seed]) -> Table:
    table = table_of("seed", "accuracy", RANDOM, ACTIVE)
    for seed in seeds:
        table.add_row(str(seed.seed), f"{seed.level:.3f}", *(f"{seed.needed(order):.0f}" for order in ORDERS))
    return table


def _questions(seeds: Sequence[Seed]) -> Table:
    table = table_of("order", *_ASKED)
    for order in ORDERS:
        numbers = ([getattr(seed.asked[order], what) for seed in seeds] for what in _ASKED)
        table.add_row(order, *(spread(one, 3) for one in numbers))
    return table


def to_json(seeds: Sequence[Seed], statements: Sequence[Statement], sizes: Sizes) -> dict[str, Any]:
    """Return the sizes, all accuracies, measures and outcomes for scripts; intervals as [low, high]."""
    ratio, interval = labels_ratio(seeds)
    needed = [{order: seed.needed(order) for order in ORDERS} | {"level": seed.level} for seed in seeds]
    return {
        "sizes": asdict(sizes),
        "seeds": [asdict(seed) | {"needed": one} for seed, one in zip(seeds, needed, strict=True)],
        "labels_ratio": {"value": ratio, "ci95": [interval.low, interval.high]},
        "statements": [statement_as_json(one) for one in statements],
    }
