"""Choose the step size of each algorithm for `rlhfctl reproduce rloo`, by the reward model, on a seed in no result.

Each algorithm is run with as many step sizes: learning rates, and of `trpo` the largest KL of an update. The best is
the one whose policy has the highest score of the reward model less `kl_coef` times the KL on the eval prompts, which is
what these algorithms are asked to raise. Gold has no part in the choice. The runs are those of algorithms.py, evaluated
only at the start and at the end, in FOLDER/choice/seed-SEED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from rlhfctl.events import Event
from rlhfctl.tools.reproduce.algorithms import (
    ALGORITHMS,
    BASE,
    CHOSEN,
    DPO,
    DPO_RATES,
    REWARD,
    Jobs,
    Sizes,
    carry_out_in_turn,
)
from rlhfctl.tools.reproduce.curves import evaluations
from rlhfctl.tools.reproduce.experiment import Job
from rlhfctl.tools.reproduce.policies import Policy, measure_all, read_answers
from rlhfctl.tools.reproduce.view import table_of

SEED = 100
"""The seed on which step sizes are chosen."""


@dataclass(frozen=True)
class Tried:
    """One algorithm with one step size: the reward model's score, the KL in nats, and score less kl_coef x KL."""

    algorithm: str
    step: float
    score: float
    kl: float
    objective: float


def candidates() -> dict[str, tuple[float, float, float]]:
    """Return the step sizes to try, by algorithm."""
    return {name: of.steps for name, of in ALGORITHMS.items()} | {DPO: DPO_RATES}


def run_name(algorithm: str, step: float) -> str:
    """Return the name of the run of one algorithm with one step size."""
    return f"{algorithm}-{step:g}"


def jobs(folder: Path, sizes: Sizes) -> Iterator[Job]:
    """List the commands of the choice, in order; `folder`: that of its seed."""
    of = Jobs(SEED, folder, replace(sizes, eval_every=sizes.updates + 1))
    yield from of.shared()
    for algorithm, steps in candidates().items():
        for step in steps:
            name = run_name(algorithm, step)
            yield of.dpo(name, sizes.beta, step) if algorithm == DPO else of.online(name, algorithm, step)


def choose(folder: Path, sizes: Sizes, listen: Callable[[Event], None], say: Callable[[str], None]) -> list[Tried]:
    """Make all runs of the choice that are not complete yet; return what each gave. `folder`: of the experiment."""
    of_seed = folder / "choice" / f"seed-{SEED}"
    carry_out_in_turn({of_seed: list(jobs(of_seed, sizes))}, listen, say)
    offline = [Policy(run_name(DPO, rate), "dpo") for rate in DPO_RATES]
    measure_all(of_seed / BASE, of_seed / REWARD / "reward", offline, sizes.answers, listen, say)
    return [
        _tried(algorithm, step, of_seed / run_name(algorithm, step), sizes.kl_coef)
        for algorithm, steps in candidates().items()
        for step in steps
    ]


def _tried(algorithm: str, step: float, run: Path, kl_coef: float) -> Tried:
    if algorithm == DPO:
        answers = read_answers(run)
        score, kl = float(np.mean(answers.score)), float(np.mean(answers.kl))
    else:
        *_, last = evaluations(run).values()
        score, kl = last["eval_score"], last["eval_kl"]
    return Tried(algorithm, step, score, kl, score - kl_coef * kl)


def best(tried: Sequence[Tried]) -> dict[str, float]:
    """Return the step size with the highest objective, by algorithm."""
    found: dict[str, Tried] = {}
    for one in tried:
        if one.algorithm not in found or one.objective > found[one.algorithm].objective:
            found[one.algorithm] = one
    return {name: one.step for name, one in found.items()}


def view(tried: Sequence[Tried], chosen: Mapping[str, float] = CHOSEN) -> Iterator[RenderableType]:
    """Draw what each step size gave, mark the best, and tell whether they are those that the command uses."""
    of = best(tried)
    yield Text(f"seed {SEED}: the reward model's score less kl_coef x KL on the eval prompts", "bold")
    table = table_of("algorithm", "step size", "score", "KL", "objective", "")
    for one in tried:
        mark = "best" if of[one.algorithm] == one.step else ""
        table.add_row(one.algorithm, f"{one.step:g}", f"{one.score:.2f}", f"{one.kl:.2f}", f"{one.objective:.3f}", mark)
    yield table
    other = {name: step for name, step in of.items() if chosen[name] != step}
    if not other:
        yield Text("these are the step sizes that the command uses")
        return
    named = ", ".join(f"{name} {step:g} (used: {chosen[name]:g})" for name, step in other.items())
    yield Text(f"not the step size that the command uses: {named}", "yellow")


def to_json(tried: Sequence[Tried], sizes: Sizes) -> dict[str, Any]:
    """Return the sizes, what each step size gave, and the best of each algorithm, for scripts."""
    return {"sizes": asdict(sizes), "seed": SEED, "tried": [asdict(one) for one in tried], "best": best(tried)}
