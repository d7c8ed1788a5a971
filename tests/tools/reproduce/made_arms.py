"""Made-up PPO runs of `rlhfctl reproduce coste`, for tests of its numbers and its view."""

from __future__ import annotations

from rlhfctl.tools.reproduce.ensemble_outcomes import Arm, Seed
from rlhfctl.tools.reproduce.ensembles import AGGREGATES, CLEAN, ENSEMBLE, NOISY, SINGLE

LABELS = (CLEAN, NOISY)


def arm(*gold: float) -> Arm:
    return Arm(list(range(len(gold))), list(gold), [0.0] * len(gold))


def seed(number: int, single: Arm, ensemble: Arm) -> Seed:
    arms = {labels: {SINGLE: single, **dict.fromkeys(AGGREGATES, ensemble)} for labels in LABELS}
    accuracy = {labels: {SINGLE: 0.8, ENSEMBLE: 0.9} for labels in LABELS}
    return Seed(number, arms, accuracy, dict.fromkeys(LABELS, 0.3))
