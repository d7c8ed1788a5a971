"""Seeds whose curves are planted, for the tests of `rlhfctl reproduce`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlhfctl.stats.scaling import Form
from rlhfctl.tools.reproduce.curves import Choice, Curve, Floats, Seed

ROWS = (100, 1_000, 10_000)


def curve(
    form: Form,
    alpha: float,
    beta: float,
    farthest: float,
    noise: float = 0.0,
    seed: int = 0,
    proxy: Callable[[Floats], Floats] = lambda gold: 2.5 * np.maximum.accumulate(gold),
) -> Curve:
    """Plant a curve of 12 points; `proxy` makes the proxy's scores from gold without noise."""
    distance = np.linspace(farthest / 12, farthest, 12)
    gold = distance * (alpha - beta * (distance if form == "best_of_n" else np.log(distance)))
    noisy = gold + np.random.default_rng(seed).normal(0, noise, size=12)
    return Curve.of(form, (distance**2).tolist(), proxy(gold).tolist(), noisy.tolist())


def planted(
    seed: int,
    *,
    penalty: float = 0.0,
    penalty_proxy: float = 0.5,
    small: float = 0.4,
    worst: float = 0.3,
    rise: float = 0.2,
    best_of_n: float = 2.4,
    noise: float = 0.02,
) -> Seed:
    """Plant a seed in which everything holds.

    `penalty`, `penalty_proxy`: by how much gold and the proxy's score rise per unit of distance; `small`: what a
    smaller policy gains more; `worst`: what the ensemble chooses better; `rise`: alpha per tenfold pairs; `best_of_n`:
    alpha of best of n.
    """
    rng = np.random.default_rng(seed)
    jitter = float(rng.normal(0, 0.02))
    rl = {
        rows: curve("rl", 0.9 + rise * (i - 1) + jitter, 0.7, 5.0, noise, seed + 10 * i) for i, rows in enumerate(ROWS)
    }

    def with_penalty(gold: Floats) -> Floats:
        distance = np.linspace(3.0 / 12, 3.0, 12)
        return 2.5 * np.maximum.accumulate(gold) + penalty_proxy * distance

    return Seed(
        seed=seed,
        agreement=dict.fromkeys(ROWS, 0.7),
        best_of_n={
            rows: curve("best_of_n", best_of_n + rise * (i - 1) + jitter, 0.9, 2.1, noise, seed + 10 * i)
            for i, rows in enumerate(ROWS)
        },
        rl=rl,
        penalty=curve("rl", 0.9 + penalty + jitter, 0.7, 3.0, noise, seed + 100, with_penalty),
        small=curve("rl", 0.9 + small, 0.7 * (0.9 + small) / 0.9, 5.0, noise, seed + 50, _gap_of_a_larger_one),
        ns=[1, 2, 4],
        single=[Choice([0.0, 0.6, 0.4 + jitter]), Choice([0.0, 0.5, 0.4])],
        ensembles={
            "mean": Choice([0.0, 0.6, 0.5 + jitter]),
            "worst": Choice([0.0, 0.3, 0.4 + worst + jitter]),
            "mean less variance": Choice([0.0, 0.5, 0.6 + jitter]),
        },
    )


def _gap_of_a_larger_one(gold: Floats) -> Floats:
    """Make proxy scores that lie as far above gold as those of the larger policy."""
    larger = curve("rl", 0.9, 0.7, 5.0)
    return gold + np.asarray(larger.proxy) - np.asarray(larger.gold)
