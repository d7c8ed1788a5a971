"""Read the runs of `rlhfctl reproduce coste`, and judge what Coste et al. (2023) state about PPO on ensembles.

Gold is in standard deviations of the reference's samples to one prompt, less the reference's mean. The statements are
those of their abstract and section 5: an ensemble reduces over-optimization by PPO, and gives more gold than one reward
model, also with flipped labels. Each is judged by the 95% intervals over seeds of two measures (statements.py). Reads
card/pool.jsonl and events.jsonl of the runs that ensembles.py names. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhfctl.artifacts import load_artifact
from rlhfctl.tools.reproduce.curves import deviation, evaluations, gold_of_pool
from rlhfctl.tools.reproduce.ensembles import AGGREGATES, ARMS, CLEAN, ENSEMBLE, NOISY, SINGLE, Sizes, run_name
from rlhfctl.tools.reproduce.statements import SAME_GOLD, Statement, above, judged, statement

SAID = {"mean": "mean", "min": "worst score", "variance": "mean less variance"}
LABELS = {CLEAN: "correct labels", NOISY: "flipped labels"}


@dataclass(frozen=True)
class Arm:
    """One PPO run: gold at each evaluation, the reference (0) first, and the KL in nats per response there."""

    updates: list[int]
    gold: list[float]
    kl: list[float]

    @classmethod
    def of(cls, found: Mapping[int, Mapping[str, float]], unit: float) -> Arm:
        """Make an arm from evaluations by update; `unit`: the standard deviation that gold is counted in."""
        start = found[0]["eval_gold"]
        return cls(
            list(found),
            [(values["eval_gold"] - start) / unit for values in found.values()],
            [values["eval_kl"] for values in found.values()],
        )

    @property
    def final(self) -> float:
        """Gold of the final policy."""
        return self.gold[-1]

    @property
    def peak(self) -> float:
        """The highest gold of all evaluations; at least 0, the reference's own."""
        return max(self.gold)

    @property
    def fall(self) -> float:
        """Gold at its peak less that of the final policy: 0 or more, also from noise alone."""
        return self.peak - self.final


@dataclass(frozen=True)
class Seed:
    """What one seed gave. `arms`: labels (clean, noisy) -> arm -> its PPO run.

    `accuracy`: labels -> held-out accuracy of the single model and of the ensemble's mean. `disagreement`: labels ->
    mean standard deviation over members, on the same held-out responses.
    """

    seed: int
    arms: dict[str, dict[str, Arm]]
    accuracy: dict[str, dict[str, float]]
    disagreement: dict[str, float]


def read_seed(seed: int, folder: Path, sizes: Sizes) -> Seed:
    """Read the complete runs of one seed; `folder`: that of the seed."""
    unit = deviation(gold_of_pool(folder / run_name(CLEAN, SINGLE) / "card" / "pool.jsonl"))
    rewards = {
        labels: {arm: load_artifact(folder / run_name(labels, arm) / "reward").manifest for arm in (SINGLE, ENSEMBLE)}
        for labels in sizes.labels
    }
    return Seed(
        seed,
        {
            labels: {arm: Arm.of(evaluations(folder / run_name(labels, arm)), unit) for arm in ARMS}
            for labels in sizes.labels
        },
        {
            labels: {arm: made.metrics["heldout_accuracy"] for arm, made in both.items()}
            for labels, both in rewards.items()
        },
        {labels: both[ENSEMBLE].metrics["reward_disagreement"] for labels, both in rewards.items()},
    )


def check(seeds: Sequence[Seed]) -> list[Statement]:
    """Check all statements on at least two seeds."""
    found = []
    for labels, said in LABELS.items():
        found.append(
            statement(
                f"premise ({labels})",
                f"with {said} PPO against one model goes too far: gold first rises and then falls",
                [
                    judged(
                        "fall of gold, one model",
                        [seed.arms[labels][SINGLE].fall for seed in seeds],
                        above(SAME_GOLD),
                    ),
                ],
            )
        )
        found += [_mitigates(how, labels, seeds) for how in AGGREGATES]
    return found


def _mitigates(how: str, labels: str, seeds: Sequence[Seed]) -> Statement:
    pairs = [(seed.arms[labels][SINGLE], seed.arms[labels][how]) for seed in seeds]
    return statement(
        f"{SAID[how]} ({labels})",
        f"with {LABELS[labels]} PPO on the {SAID[how]} of an ensemble over-optimizes less than on one model, and ends "
        "with more gold",
        [
            judged("fall of gold, one model less ensemble", [one.fall - other.fall for one, other in pairs], above(0)),
            judged(
                "gold of the final policy, ensemble less one model",
                [other.final - one.final for one, other in pairs],
                above(0),
            ),
        ],
    )
