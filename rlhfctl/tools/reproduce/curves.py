"""Read the runs of one seed, and fit the curves: proxy and gold score against the distance from the reference.

Scores are in standard deviations of the reference's samples to one prompt, less the reference's mean, so that proxies
can be compared. The distance is the square root of the KL in nats per response. Reads card/pool.jsonl, the scores of
the pool and events.jsonl of the runs that experiment.py names. Loads no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlhfctl.artifacts import read_json
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.errors import RlhfctlError
from rlhfctl.stats import best_of_n, scaling
from rlhfctl.stats.scaling import Fit, Form
from rlhfctl.tools.reproduce.experiment import (
    PENALTY,
    SCORES,
    SMALL_POLICY,
    Sizes,
    members,
    pool_file,
    proxy_name,
)

Floats = NDArray[np.float64]
Along = Literal["distance", "proxy"]

VARIANCE_WEIGHT = 0.5
"""Weight of the members' variance in uncertainty-weighted choice, with scores in standard deviations of the pool."""

_GRID = 101  # places at which two curves are compared


@dataclass(frozen=True)
class Points:
    """Points of one optimization against one proxy, the nearest first; all arrays (points,). The reference is 0."""

    distance: list[float]
    proxy: list[float]
    gold: list[float]

    @classmethod
    def at(cls, kl: Sequence[float], proxy: Sequence[float], gold: Sequence[float]) -> Points:
        """Put points in order, those with a KL of 0 left out; `kl` in nats per response."""
        kept = sorted((math.sqrt(k), p, g) for k, p, g in zip(kl, proxy, gold, strict=True) if k > 0)
        return Points(*([point[column] for point in kept] for column in range(3)))

    def gold_at(self, places: Floats, along: Along = "distance") -> Floats:
        """Interpolate gold at places (n,) along the distance or the proxy's score; the reference is 0 in all three."""
        points = np.array(sorted(zip([0.0, *getattr(self, along)], [0.0, *self.gold], strict=True)))
        return np.interp(places, points[:, 0], points[:, 1])

    def proxy_at(self, places: Floats) -> Floats:
        """Interpolate the proxy's score at distances (n,); the reference is 0 in both."""
        return np.interp(places, [0.0, *self.distance], [0.0, *self.proxy])

    @property
    def reach(self) -> float:
        """The farthest distance; 0 without a point."""
        return max([0.0, *self.distance])

    @property
    def highest(self) -> int:
        """The index of the point with the most gold."""
        return int(np.argmax(self.gold))

    @property
    def fall(self) -> float:
        """Gold at its highest point less gold at the farthest; 0 or more, also from noise alone."""
        return self.gold[self.highest] - self.gold[-1]


@dataclass(frozen=True)
class Curve(Points):
    """Points, and the fits of gold.

    `fit`: by the form that Gao et al. give for this kind of optimization; `other_fit`: by their form for the other.
    """

    form: Form
    fit: Fit
    other_fit: Fit

    @classmethod
    def of(cls, form: Form, kl: Sequence[float], proxy: Sequence[float], gold: Sequence[float]) -> Curve:
        """Build a curve from points, those with a KL of 0 left out; `kl` in nats per response.

        Raises RlhfctlError for fewer than three points, and where gold is the same at all of them.
        """
        points = Points.at(kl, proxy, gold)
        if len(points.gold) < 3:
            raise RlhfctlError(
                f"{len(points.gold)} points lie away from the reference: a curve needs three",
                fix="make more evaluations: a longer run, or ppo.eval.every lower",
            )
        if min(points.gold) == max(points.gold):
            raise RlhfctlError(
                "gold is the same at all points of a curve, so there is nothing to fit", fix="optimize for longer"
            )
        other: Form = "rl" if form == "best_of_n" else "best_of_n"
        fits = (scaling.fit(one, points.distance, points.gold) for one in (form, other))
        return cls(points.distance, points.proxy, points.gold, form, *fits)


def common(first: Points, second: Points, along: Along = "distance") -> Floats:
    """Return evenly spread places from the reference (left out) to the farthest that both curves reach."""
    end = min(max([0.0, *getattr(curve, along)]) for curve in (first, second))
    return np.linspace(0.0, end, _GRID)[1:]


def gold_difference(first: Points, second: Points, along: Along = "distance") -> float:
    """Compute the mean difference of gold, first less second, over the places that both curves reach."""
    places = common(first, second, along)
    return float(np.mean(first.gold_at(places, along) - second.gold_at(places, along)))


@dataclass(frozen=True)
class Choice:
    """What choosing the best of n by one scorer gives: gold for each of `ns`."""

    gold: list[float]

    @property
    def fall(self) -> float:
        """Gold at the best n less gold at the largest n: 0 or more."""
        return max(self.gold) - self.gold[-1]


@dataclass(frozen=True)
class Seed:
    """All curves of one seed. `best_of_n` and `rl`: by the number of pairs of the proxy.

    `agreement`: the share of pairs of samples to one prompt that a proxy orders as gold does.
    `ensembles`: by name, what several scorers choose in best of n. Those of `single` are the members of the ensemble,
    each for itself, of which the middle proxy is the first.
    """

    seed: int
    agreement: dict[int, float]
    best_of_n: dict[int, Curve]
    rl: dict[int, Curve]
    penalty: Curve
    small: Curve
    ns: list[int]
    single: list[Choice]
    ensembles: dict[str, Choice]


def read_seed(seed: int, folder: Path, sizes: Sizes) -> Seed:
    """Read the complete runs of one seed; `folder`: that of the seed."""
    gold = gold_of_pool(pool_file(folder, sizes))
    ns = best_of_n.sizes(gold.shape[1])

    def scores(name: str) -> Floats:
        return np.reshape(np.asarray(read_json(folder / name / SCORES)["scores"], dtype=np.float64), gold.shape)

    proxies = {rows: scores(proxy_name(rows)) for rows in sizes.rows}
    middle = Units(proxies[sizes.middle], gold)
    of_members = [best_of_n.standardized(scores(name)) for name in members(sizes)]
    return Seed(
        seed,
        {rows: agreement(proxy, gold) for rows, proxy in proxies.items()},
        {rows: _best_of_n(proxy, gold, ns) for rows, proxy in proxies.items()},
        {rows: _rl(folder / proxy_name(rows), Units(proxy, gold)) for rows, proxy in proxies.items()},
        _rl(folder / PENALTY, middle),
        _rl(folder / SMALL_POLICY, middle),
        ns,
        [Choice(chosen(one, gold, ns)) for one in of_members],
        {name: Choice(chosen(chooser, gold, ns)) for name, chooser in choosers(of_members).items()},
    )


def gold_of_pool(pool: Path) -> Floats:
    """Read gold's scores of a card's pool, (prompts, samples)."""
    return scores_of_pool(pool, "gold")


def scores_of_pool(pool: Path, scorer: str) -> Floats:
    """Read the scores of a card's pool by a scorer (gold, reward), (prompts, samples)."""
    rows = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    samples = 1 + max(row["sample"] for row in rows)
    return np.array([row["scores"][scorer] for row in rows], dtype=np.float64).reshape(-1, samples)


def agreement(proxy: Floats, gold: Floats) -> float:
    """Compute the share of pairs of samples to one prompt that `proxy` orders as `gold` does; both (prompts, samples).

    Pairs that gold ties do not count; those that the proxy ties count half. NaN never: RlhfctlError if gold ties all.
    """
    right, total = 0.0, 0
    for scores, truth in zip(proxy, gold, strict=True):
        better = truth[:, None] > truth[None, :]
        total += int(better.sum())
        right += float((better & (scores[:, None] > scores[None, :])).sum())
        right += float((better & (scores[:, None] == scores[None, :])).sum()) / 2
    if total == 0:
        raise RlhfctlError("gold gives all samples to a prompt the same score", fix="train the base for longer")
    return right / total


# ---------------------------------------------------------------- best of n


def _best_of_n(proxy: Floats, gold: Floats, ns: Sequence[int]) -> Curve:
    chooser = best_of_n.standardized(proxy)
    kl = [best_of_n.kl_bound(n) for n in ns]
    return Curve.of("best_of_n", kl, chosen(chooser, proxy, ns), chosen(chooser, gold, ns))


def chosen(chooser: Floats, scores: Floats, ns: Sequence[int]) -> list[float]:
    """Compute the mean of `scores`, in their standard deviations, at the sample that `chooser` likes best of n."""
    standard = best_of_n.standardized(scores)
    return [float((best_of_n.chances(chooser, n) * standard).sum(axis=1).mean()) for n in ns]


def choosers(of_members: Sequence[Floats]) -> dict[str, Floats]:
    """Return the scores by which an ensemble chooses, from its members' standardized ones; all (prompts, samples).

    Coste et al. (2023): the mean, the worst, and the mean less a multiple of the variance over members.
    """
    scores = np.stack(of_members)
    mean = scores.mean(axis=0)
    return {
        "mean": mean,
        "worst": scores.min(axis=0),
        "mean less variance": mean - VARIANCE_WEIGHT * scores.var(axis=0),
    }


# ---------------------------------------------------------------- RL


@dataclass(frozen=True)
class Units:
    """The scores of the reference's samples (prompts, samples), which give the units: the proxy's and gold's."""

    proxy: Floats
    gold: Floats


def evaluations(run: Path) -> dict[int, Mapping[str, float]]:
    """Read the evaluations of a run's PPO by update, those since its last start from the reference.

    Of an update that was evaluated twice (after a kill), the later counts. RlhfctlError without one at update 0.
    """
    found: dict[int, Mapping[str, float]] = {}
    for event in read_events(run / "events.jsonl"):
        if event["event"] == "metrics" and event["stage"] == "ppo" and event.get("split") == "eval":
            if event["step"] == 0:
                found = {}
            found[event["step"]] = event["values"]
    if 0 not in found:
        raise RlhfctlError("PPO has no evaluation at update 0", where=str(run), fix="set ppo.eval.every above 0")
    return dict(sorted(found.items()))


def _rl(run: Path, pool: Units) -> Curve:
    kl, proxy, gold = in_units(evaluations(run), pool)
    return Curve.of("rl", kl[1:], proxy[1:], gold[1:])


def in_units(found: Mapping[int, Mapping[str, float]], pool: Units) -> tuple[list[float], list[float], list[float]]:
    """Return the KL in nats, the proxy's score and gold of the evaluations; the first, of the reference, is 0."""
    start, *_ = points = list(found.values())
    units = {"eval_score": deviation(pool.proxy), "eval_gold": deviation(pool.gold)}
    proxy, gold = ([(point[name] - start[name]) / unit for point in points] for name, unit in units.items())
    return [point["eval_kl"] for point in points], proxy, gold


def deviation(scores: Floats) -> float:
    """Compute the standard deviation within prompts of `scores` (prompts, samples)."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    found = math.sqrt(float(np.sum(np.square(centred))) / (scores.shape[0] * (scores.shape[1] - 1)))
    if found == 0:
        raise RlhfctlError("a scorer gives every response the same score", fix="train the reward model longer")
    return found
