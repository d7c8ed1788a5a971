"""Seeds whose curves are planted, for the tests of `rlhfctl reproduce`."""

from __future__ import annotations

import numpy as np

from rlhfctl.stats.scaling import Form
from rlhfctl.tools.reproduce.curves import Curve, Seed

ROWS = (100, 1_000, 10_000)


def curve(form: Form, alpha: float, beta: float, farthest: float, noise: float = 0.0, seed: int = 0) -> Curve:
    distance = np.linspace(farthest / 12, farthest, 12)
    decline = distance if form == "best_of_n" else np.log(distance)
    gold = distance * (alpha - beta * decline) + np.random.default_rng(seed).normal(0, noise, size=12)
    return Curve.of(form, (distance**2).tolist(), distance.tolist(), gold.tolist())


def planted(seed: int, *, penalty: float = 0.0, small: float = 0.5, worst: float = 0.3, noise: float = 0.02) -> Seed:
    """Plant a seed in which larger proxies are better, and RL is slower than best of n."""
    rng = np.random.default_rng(seed)
    jitter = float(rng.normal(0, 0.02))
    return Seed(
        seed=seed,
        accuracy=dict.fromkeys(ROWS, 0.7),
        best_of_n={rows: curve("best_of_n", 1.0 + jitter, 0.2, 2.1, noise, seed) for rows in ROWS},
        rl={rows: curve("rl", 0.3 * i + 0.3 + jitter, 0.25, 5.0, noise, seed) for i, rows in enumerate(ROWS)},
        penalty=curve("rl", 0.6 + penalty + jitter, 0.25, 3.0, noise, seed + 100),
        small=curve("rl", 0.6 + small + jitter, 0.25, 5.0, noise, seed),
        ns=[1, 2, 4],
        ensembles={
            "one model": [0.0, 0.3, 0.4],
            "mean": [0.0, 0.3, 0.5 + jitter],
            "worst": [0.0, 0.3, 0.4 + worst + jitter],
        },
    )
