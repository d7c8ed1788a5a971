"""Read the runs of `rlhfctl reproduce rloo`; compare the algorithms at equal samples and at equal KL, seed by seed.

Gold and the reward model's score are in standard deviations of the reference's samples to one prompt, less the
reference's mean. At equal samples the policies are compared that the runs end with. At equal KL gold is interpolated
along the square root of the KL (curves.py), over the distances that both of two algorithms reach.

The statements on REINFORCE, RLOO, DPO and the parts of PPO are those of the abstract of Ahmadian et al. (2024). That on
a2c is the check of a cheap explanation: ppo takes several optimizer steps per batch, where RLOO takes one. Each is
judged by 95% intervals over seeds of paired differences (statements.py), which are not corrected for their number.
Loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from rlhfctl.stats import best_of_n
from rlhfctl.tools.reproduce.algorithms import (
    A2C,
    ALGORITHMS,
    BASE,
    DPO,
    PPO,
    REINFORCE,
    REWARD,
    RLOO_2,
    RLOO_4,
    Sizes,
    dpo_name,
)
from rlhfctl.tools.reproduce.curves import (
    Floats,
    Points,
    Units,
    chosen,
    deviation,
    evaluations,
    gold_difference,
    in_units,
    scores_of_pool,
)
from rlhfctl.tools.reproduce.policies import Answers, read_answers
from rlhfctl.tools.reproduce.statements import SAME_GOLD, Measure, Statement, above, judged, statement

BEST_OF_N = "best of n"
ROWS = (*ALGORITHMS, DPO, BEST_OF_N)
"""All that is compared, in the order of the tables."""

SAME_RATE = 0.05
"""Difference of win rates below which one algorithm is said to be no worse than the other."""


@dataclass(frozen=True)
class End:
    """The policy that a run ends with: gold, the reward model's score, the KL in nats, and gold's win rate.

    `wins`: the share of comparisons with the reference's answers to the same prompt that gold decides for the policy;
    a tie is half. `broken`: the share of answers whose gold is 0, such as those that are no proper review.
    """

    gold: float
    score: float
    kl: float
    wins: float
    broken: float


@dataclass(frozen=True)
class Seed:
    """What one seed gave, by the names of ROWS. `half`: gold after half of the updates, of the algorithms with updates.

    `accuracy`: of the reward model on held-out pairs. `broken`: the share of the reference's answers whose gold is 0.
    """

    seed: int
    accuracy: float
    broken: float
    curves: dict[str, Points]
    ends: dict[str, End]
    half: dict[str, float]

    def at_equal_kl(self, first: str, second: str) -> float:
        """Compute the mean difference of gold, first less second, over the distances that both reach."""
        return gold_difference(self.curves[first], self.curves[second])


def read_seed(seed: int, folder: Path, sizes: Sizes) -> Seed:
    """Read the complete runs of one seed; `folder`: that of the seed."""
    from rlhfctl.artifacts import load_artifact

    file = folder / REWARD / "card" / "pool.jsonl"
    pool = Units(scores_of_pool(file, "reward"), scores_of_pool(file, "gold"))
    reference = read_answers(folder / BASE)
    curves: dict[str, Points] = {}
    half: dict[str, float] = {}
    for name in ALGORITHMS:
        found = evaluations(folder / name)
        kl, score, gold = in_units(found, pool)
        curves[name], half[name] = Points.at(kl, score, gold), gold[halfway(list(found))]
    ends = {name: end_of(read_answers(folder / name), reference, pool) for name in ALGORITHMS}
    dpo = ends[DPO] = end_of(read_answers(folder / dpo_name(sizes.beta)), reference, pool)
    curves[DPO] = Points.at([dpo.kl], [dpo.score], [dpo.gold])  # one point: it is not evaluated while it learns
    curves[BEST_OF_N], ends[BEST_OF_N] = _best_of_n(pool)
    accuracy = load_artifact(folder / REWARD / "reward").manifest.metrics["heldout_accuracy"]
    return Seed(seed, accuracy, broken(reference), curves, ends, half)


def halfway(updates: Sequence[int]) -> int:
    """Return the index of the first evaluation at half of the updates or later."""
    return next(index for index, update in enumerate(updates) if 2 * update >= updates[-1])


def end_of(answers: Answers, reference: Answers, pool: Units) -> End:
    """Compare a policy's answers with the reference's to the same prompts."""
    gold, score = (
        (float(np.mean(getattr(answers, name))) - float(np.mean(getattr(reference, name)))) / deviation(unit)
        for name, unit in (("gold", pool.gold), ("score", pool.proxy))
    )
    return End(gold, score, float(np.mean(answers.kl)), win_rate(answers.gold, reference.gold), broken(answers))


def broken(answers: Answers) -> float:
    """Compute the share of answers whose gold is 0."""
    return float(np.mean(np.asarray(answers.gold) == 0))


def win_rate(policy: ArrayLike, reference: ArrayLike) -> float:
    """Compute the share of pairs of answers to one prompt in which the policy's is higher; a tie is half.

    `policy` and `reference`: (prompts, answers), the numbers of answers may differ.
    """
    first, second = np.asarray(policy)[:, :, None], np.asarray(reference)[:, None, :]
    return float(np.mean((first > second) + 0.5 * (first == second)))


def _best_of_n(pool: Units) -> tuple[Points, End]:
    """Choose the best of n of the pool by the reward model, for n of 1, 2, 4, ...; the end is at the largest n."""
    ns = best_of_n.sizes(pool.gold.shape[1])
    chooser = best_of_n.standardized(pool.proxy)
    kl = [best_of_n.kl_bound(n) for n in ns]
    score, gold = chosen(chooser, pool.proxy, ns), chosen(chooser, pool.gold, ns)
    points = Points.at(kl, score, gold)
    wins, zero = wins_of_choice(chooser, pool.gold, ns[-1]), best_of_n.chances(chooser, ns[-1]) * (pool.gold == 0)
    return points, End(gold[-1], score[-1], kl[-1], wins, float(zero.sum(axis=1).mean()))


def wins_of_choice(chooser: Floats, gold: Floats, n: int) -> float:
    """Compute how often the best of n by `chooser` has more gold than another sample of its prompt; a tie is half.

    `chooser`, `gold`: (prompts, samples).
    """
    higher, ties = ((compare(gold[:, :, None], gold[:, None, :])) for compare in (np.greater, np.equal))
    samples = gold.shape[1]
    against_others = (higher.sum(axis=2) + 0.5 * (ties.sum(axis=2) - 1)) / (samples - 1)  # not against itself
    return float((best_of_n.chances(chooser, n) * against_others).sum(axis=1).mean())


# ---------------------------------------------------------------- statements


def check(seeds: Sequence[Seed]) -> list[Statement]:
    """Check all statements on at least two seeds."""

    def measure(what: str, number: Callable[[Seed], float], bound: float = 0.0) -> Measure:
        return judged(what, [number(seed) for seed in seeds], above(bound))

    def ends(first: str, second: str, margin: float = 0.0, margin_of_rate: float = 0.0) -> list[Measure]:
        pair = f"{first} less {second}"
        return [
            measure(f"gold, {pair}", lambda seed: seed.ends[first].gold - seed.ends[second].gold, 0.0 - margin),
            measure(
                f"win rate, {pair}", lambda seed: seed.ends[first].wins - seed.ends[second].wins, 0.0 - margin_of_rate
            ),
        ]

    def at_equal_kl(first: str, second: str) -> Measure:
        return measure(f"gold at the same KL, {first} less {second}", lambda seed: seed.at_equal_kl(first, second))

    return [
        statement(
            "premise",
            "there is something to compare: every algorithm raises the reward model's score, and gold",
            [
                measure(
                    "lowest score of an algorithm of this seed",
                    lambda seed: min(seed.ends[name].score for name in ALGORITHMS),
                ),
                measure(
                    "lowest gold of an algorithm of this seed",
                    lambda seed: min(seed.ends[name].gold for name in ALGORITHMS),
                ),
            ],
        ),
        statement("RLOO over PPO", "at equal samples RLOO with four answers ends better than PPO", ends(RLOO_4, PPO)),
        statement("REINFORCE over PPO", "at equal samples REINFORCE ends better than PPO", ends(REINFORCE, PPO)),
        statement(
            "more reward than PPO",
            "at equal samples REINFORCE and RLOO raise the reward model's score, which all of them optimize, more than "
            "PPO",
            [
                measure(
                    f"score, {name} less {PPO}",
                    lambda seed, name=name: seed.ends[name].score - seed.ends[PPO].score,  # type: ignore[misc]
                )
                for name in (REINFORCE, RLOO_2, RLOO_4)
            ],
        ),
        statement(
            "RLOO over a2c",
            "at equal samples and as many optimizer steps, one per batch, RLOO with four answers ends better than with "
            "PPO's critic (a2c)",
            ends(RLOO_4, A2C),
        ),
        statement(
            "four over two",
            "at equal samples RLOO with four answers to a prompt ends no worse than with two "
            f"(by {SAME_GOLD:g} in gold, {SAME_RATE:g} in win rate)",
            ends(RLOO_4, RLOO_2, SAME_GOLD, SAME_RATE),
        ),
        statement(
            "parts of PPO",
            "PPO's clipping and several passes are not needed: without them (a2c) it ends no worse "
            f"(by {SAME_GOLD:g} in gold, {SAME_RATE:g} in win rate)",
            ends(A2C, PPO, SAME_GOLD, SAME_RATE),
        ),
        statement(
            "RL over DPO",
            "REINFORCE and RLOO end better than DPO on the pairs of the reward model",
            [*ends(REINFORCE, DPO), *ends(RLOO_2, DPO), *ends(RLOO_4, DPO)],
        ),
        statement(
            "RLOO over PPO at equal KL",
            "RLOO with four answers has more gold than PPO at the same KL",
            [at_equal_kl(RLOO_4, PPO)],
        ),
        statement(
            "REINFORCE over PPO at equal KL",
            "REINFORCE has more gold than PPO at the same KL",
            [at_equal_kl(REINFORCE, PPO)],
        ),
        statement(
            "RL over DPO at equal KL",
            "REINFORCE and RLOO have more gold than DPO at the same KL",
            [at_equal_kl(name, DPO) for name in (REINFORCE, RLOO_2, RLOO_4)],
        ),
    ]


def numbers(seeds: Sequence[Seed], name: str, what: str) -> list[float]:
    """List one number of the ends (gold, score, kl, wins, broken) of one algorithm, by seed."""
    return [getattr(seed.ends[name], what) for seed in seeds]


def differences(seeds: Sequence[Seed], name: str, what: str, other: str = PPO) -> list[float]:
    """List by how much a number of the ends is higher than that of another algorithm, by seed."""
    of: Mapping[str, list[float]] = {one: numbers(seeds, one, what) for one in (name, other)}
    return [first - second for first, second in zip(of[name], of[other], strict=True)]
