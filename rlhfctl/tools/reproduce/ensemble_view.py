"""Show the result of `rlhfctl reproduce coste`: gold of each arm, and the statements that held.

Pure drawing, for a terminal of 80 columns or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from rlhfctl.tools.reproduce.ensemble_outcomes import LABELS, SAID, Arm, Seed
from rlhfctl.tools.reproduce.ensembles import ARMS, ENSEMBLE, SINGLE, Sizes
from rlhfctl.tools.reproduce.statements import Statement
from rlhfctl.tools.reproduce.view import draw_statements, spread, statement_as_json, table_of

_NOTES = (
    "Gold is in standard deviations of the reference's samples to one prompt; the reference is 0. +-: half of the 95% "
    "interval over seeds (Student's t). fall: highest gold less gold of the final policy."
)


def view(seeds: Sequence[Seed], statements: Sequence[Statement]) -> Iterator[RenderableType]:
    """Draw the table, then the statements, then which of them held."""
    yield Text(f"{len(seeds)} seeds: {', '.join(str(seed.seed) for seed in seeds)}", "bold")
    for labels, said in LABELS.items():
        accuracy = {arm: spread([seed.accuracy[labels][arm] for seed in seeds]) for arm in (SINGLE, ENSEMBLE)}
        differ = spread([seed.disagreement[labels] for seed in seeds])
        yield Text(f"\nPPO on rewards that learned from {said}, gold", "bold")
        yield Text(
            f"right on held-out pairs: one model {accuracy[SINGLE]}, the members' mean {accuracy[ENSEMBLE]}; members "
            f"differ by {differ}"
        )
        table = table_of("optimized against", "final", "highest", "fall", "KL at the end")
        for arm in ARMS:
            runs: list[Arm] = [seed.arms[labels][arm] for seed in seeds]
            numbers = ([one.final for one in runs], [one.peak for one in runs], [one.fall for one in runs])
            table.add_row(arm_name(arm), *map(spread, numbers), spread([one.kl[-1] for one in runs]))
        yield table
    yield Text(_NOTES, "dim")
    yield from draw_statements("statements of the paper", statements)


def arm_name(arm: str) -> str:
    """Return what a policy was optimized against, in words."""
    return "one model" if arm == SINGLE else f"ensemble: {SAID[arm]}"


def to_json(seeds: Sequence[Seed], statements: Sequence[Statement], sizes: Sizes) -> dict[str, Any]:
    """Return the sizes, all evaluations, measures and outcomes for scripts; intervals as [low, high]."""
    return {
        "sizes": asdict(sizes),
        "seeds": [asdict(seed) for seed in seeds],
        "statements": [statement_as_json(one) for one in statements],
    }
