"""Read the runs of one seed, and fit the curves: proxy and gold score against the distance from the reference.

Scores are in standard deviations of the reference's samples to one prompt, less the reference's mean, so that proxies
can be compared. The distance is the square root of the KL in nats per response. Reads card/card.json, card/pool.jsonl
and events.jsonl of the runs that experiment.py names. Loads no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhfctl.artifacts import read_json
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.errors import RlhfctlError
from rlhfctl.stats import best_of_n, scaling
from rlhfctl.stats.scaling import Fit, Form
from rlhfctl.tools.reproduce.experiment import PENALTY, SCORES, SMALL_POLICY, Sizes, members, proxy_name

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Points of one optimization against one proxy, the nearest first, and the fit of gold; all arrays (points,)."""

    form: Form
    distance: list[float]
    proxy: list[float]
    gold: list[float]
    fit: Fit

    @classmethod
    def of(cls, form: Form, kl: Sequence[float], proxy: Sequence[float], gold: Sequence[float]) -> Curve:
        """Build a curve from points with a KL above 0, in nats per response."""
        kept = sorted((math.sqrt(k), p, g) for k, p, g in zip(kl, proxy, gold, strict=True) if k > 0)
        if len(kept) < 3:
            raise RlhfctlError(
                f"{len(kept)} points lie away from the reference: a curve needs three",
                fix="make more evaluations: a longer run, or ppo.eval.every lower",
            )
        distance, proxies, golds = (list(column) for column in zip(*kept, strict=True))
        return cls(form, distance, proxies, golds, scaling.fit(form, distance, golds))

    def at(self, distance: float) -> tuple[float, float]:
        """Interpolate proxy and gold at a distance between the nearest and the farthest point."""
        proxy, gold = (float(np.interp(distance, self.distance, values)) for values in (self.proxy, self.gold))
        return proxy, gold


@dataclass(frozen=True)
class Seed:
    """All curves of one seed. `best_of_n` and `rl`: by the number of pairs of the proxy.

    `ensembles`: gold at the best of n by one model, by the mean and by the worst of the ensemble, for each of `ns`.
    """

    seed: int
    accuracy: dict[int, float]  # of each proxy on held-out pairs
    best_of_n: dict[int, Curve]
    rl: dict[int, Curve]
    penalty: Curve
    small: Curve
    ns: list[int]
    ensembles: dict[str, list[float]]


def read_seed(seed: int, folder: Path, sizes: Sizes) -> Seed:
    """Read the complete runs of one seed; `folder`: that of the seed."""
    cards = {rows: read_json(folder / proxy_name(rows) / "card" / "card.json") for rows in sizes.rows}
    pools = {rows: Pool.read(folder / proxy_name(rows) / "card" / "pool.jsonl") for rows in sizes.rows}
    middle = pools[sizes.middle]
    return Seed(
        seed,
        {rows: card["accuracy"]["value"] for rows, card in cards.items()},
        {rows: _best_of_n(card["optimization"]) for rows, card in cards.items()},
        {rows: _rl(folder / proxy_name(rows), pools[rows]) for rows in sizes.rows},
        _rl(folder / PENALTY, middle),
        _rl(folder / SMALL_POLICY, middle),
        best_of_n.sizes(middle.gold.shape[1]),
        _ensembles(folder, middle, sizes),
    )


@dataclass(frozen=True)
class Pool:
    """Scores of the reference's samples (prompts, samples): the proxy's and gold's."""

    proxy: Floats
    gold: Floats

    @classmethod
    def read(cls, file: Path) -> Pool:
        """Read the pool of a card."""
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        samples = 1 + max(row["sample"] for row in rows)

        def scores(name: str) -> Floats:
            return np.array([row["scores"][name] for row in rows], dtype=np.float64).reshape(-1, samples)

        return cls(scores("reward"), scores("gold"))


def _best_of_n(curves: Mapping[str, Any]) -> Curve:
    return Curve.of("best_of_n", curves["kl"], curves["proxy"]["mean"], curves["gold"]["mean"])


def _rl(run: Path, pool: Pool) -> Curve:
    """Read the evaluations of a run's PPO; of an update that was evaluated twice (after a kill), the later counts."""
    found: dict[int, Mapping[str, float]] = {}
    for event in read_events(run / "events.jsonl"):
        if event["event"] == "metrics" and event["stage"] == "ppo" and event.get("split") == "eval":
            found[event["step"]] = event["values"]
    if 0 not in found:
        raise RlhfctlError("PPO has no evaluation at update 0", where=str(run), fix="set ppo.eval.every above 0")
    start, points = found[0], [found[step] for step in sorted(found) if step > 0]
    units = {"eval_score": _deviation(pool.proxy), "eval_gold": _deviation(pool.gold)}
    proxy, gold = ([(point[name] - start[name]) / unit for point in points] for name, unit in units.items())
    return Curve.of("rl", [point["eval_kl"] for point in points], proxy, gold)


def _deviation(scores: Floats) -> float:
    """Compute the standard deviation within prompts of `scores` (prompts, samples)."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    found = math.sqrt(float(np.sum(np.square(centred))) / (scores.shape[0] * (scores.shape[1] - 1)))
    if found == 0:
        raise RlhfctlError("a scorer gives every response the same score", fix="train the reward model longer")
    return found


def _ensembles(folder: Path, pool: Pool, sizes: Sizes) -> dict[str, list[float]]:
    """Let one model, the mean and the worst of an ensemble choose the best of n, as Coste et al. do; gold's mean."""
    scores = [read_json(folder / name / SCORES)["scores"] for name in members(sizes)]
    standard = np.stack([best_of_n.standardized(np.reshape(one, pool.gold.shape)) for one in scores])
    gold, ns = best_of_n.standardized(pool.gold), best_of_n.sizes(pool.gold.shape[1])
    choosers = {"one model": standard[0], "mean": standard.mean(axis=0), "worst": standard.min(axis=0)}
    return {
        name: [float((best_of_n.chances(chooser, n) * gold).sum(axis=1).mean()) for n in ns]
        for name, chooser in choosers.items()
    }
