"""Show whether PPO went too far: the reward that it raises, beside scorers that it never sees, over KL.

Reads the evaluations of a PPO stage. Scores are in standard deviations of the reference's responses, from the first
evaluation on, so that scorers with different units can be drawn together (Gao et al. 2022). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhfctl.dashboard.text import number
from rlhfctl.report.facts.measures import reference_std
from rlhfctl.report.facts.records import Pair, Run, Stage

SCORERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "eval_score": ("reward that PPO raises", ("reward_model", "reward_function")),
    "eval_heldout": ("held-out reward model", ("heldout",)),
    "eval_gold": ("gold, the true preference", ("gold",)),
}
"""Metric of an evaluation -> its name on the page, and the judges that give the same scores in the comparison."""

PROXY = "eval_score"

CLEAR_FALL = 0.2
"""Standard deviations by which a scorer must have fallen from its peak before the page says that PPO went too far."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during PPO: its update, KL (nats per response) and each scorer's mean as it was reported."""

    update: int
    kl: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Optimization:
    """The evaluations of one PPO stage, each scorer's unit, and the evaluation to recommend."""

    stage: str
    evaluations: Sequence[Evaluation]
    units: Mapping[str, float]  # what a scorer's change is divided by
    in_deviations: bool  # the units are standard deviations of the reference's responses
    guide: str  # the scorer that recommends; empty: there is none
    recommended: int | None  # index of an evaluation
    handed_on: int | None  # update of the policy that the stage left

    def change(self, scorer: str, index: int) -> float:
        """Return a scorer's change since the first evaluation, in its unit."""
        scores = [one.scores[scorer] for one in self.evaluations]
        return (scores[index] - scores[0]) / self.units[scorer]

    @property
    def scorers(self) -> list[str]:
        return list(self.units)

    def fall(self, scorer: str) -> tuple[int, float]:
        """Return the index of a scorer's peak, and how far it has fallen from there to the last evaluation."""
        last = len(self.evaluations) - 1
        peak = max(range(last + 1), key=lambda index: self.change(scorer, index))
        return peak, self.change(scorer, peak) - self.change(scorer, last)


def optimization_of(run: Run, stage: Stage) -> Optimization | None:
    """Collect the evaluations of a PPO stage; None where there are fewer than two."""
    pairs = [pair for pair in run.pairs if pair.seed == stage.seed]
    curves = {name: dict(stage.curves.get(name, ())) for name in (*SCORERS, "eval_kl")}
    names = [name for name in SCORERS if curves[name]]
    steps = sorted(set(curves["eval_kl"]).intersection(*(curves[name] for name in names)) if names else ())
    evaluations = [
        Evaluation(step, max(0.0, curves["eval_kl"][step]), {name: curves[name][step] for name in names})
        for step in steps
        if all(math.isfinite(curves[name][step]) for name in (*names, "eval_kl"))
    ]
    if len(evaluations) < 2:
        return None
    deviations = {name: _deviation(name, run, stage, pairs) for name in names}
    in_deviations = all(deviations.values())
    units = {name: deviations[name] if in_deviations else _range(evaluations, name) for name in names}
    guide = next((name for name in ("eval_heldout", "eval_gold") if name in names), "")
    return Optimization(
        stage=stage.name,
        evaluations=evaluations,
        units={name: unit or 1.0 for name, unit in units.items()},
        in_deviations=in_deviations,
        guide=guide,
        recommended=_recommended(evaluations, guide, _setting(stage, "best_kl_limit")) if guide else None,
        handed_on=_handed_on(stage, evaluations),
    )


def _recommended(evaluations: Sequence[Evaluation], guide: str, kl_limit: float | None) -> int:
    return best_evaluation([(one.kl, one.scores[guide]) for one in evaluations], kl_limit)


def best_evaluation(points: Sequence[tuple[float, float]], kl_limit: float | None = None) -> int:
    """Return the index of the highest value among points of (KL, value) within the limit (None: there is none).

    The earliest of equal ones is best. If no point is within the limit, it is the one with the lowest KL.
    """
    within = [index for index, (kl, _) in enumerate(points) if kl_limit is None or kl <= kl_limit]
    if not within:
        return min(range(len(points)), key=lambda index: points[index][0])
    return max(within, key=lambda index: points[index][1])


def told(found: Optimization) -> str:
    """Say in words whether the scorers that PPO never sees followed the reward that it raises."""
    if not found.guide:
        return (
            "Nothing independent was measured during PPO. With reward.heldout: true a second reward model shows "
            "whether the gain is real."
        )
    unit = "standard deviations" if found.in_deviations else "of its range"
    name = SCORERS[found.guide][0]
    peak, fall = found.fall(found.guide)
    at, last = found.evaluations[peak], found.evaluations[-1]
    rise = found.change(PROXY, len(found.evaluations) - 1) - found.change(PROXY, peak) if PROXY in found.units else 0
    if fall >= CLEAR_FALL and rise > 0:
        return (
            f"PPO went too far: from update {at.update:,} (KL {number(at.kl, 3)}) to update {last.update:,} (KL "
            f"{number(last.kl, 3)}) the reward that it raises rose by {number(rise, 2)} {unit}, while the {name} fell "
            f"by {number(fall, 2)}. The policy of update {at.update:,} is the better one."
        )
    if fall >= CLEAR_FALL:
        return (
            f"The {name} was highest at update {at.update:,} (KL {number(at.kl, 3)}) and has fallen by "
            f"{number(fall, 2)} {unit} since."
        )
    gain = found.change(found.guide, len(found.evaluations) - 1)
    moved = f"rose by {number(gain, 2)}" if gain > 0 else f"changed by {number(gain, 2)}"
    return f"No sign of over-optimisation: the {name} {moved} {unit} and has not clearly fallen from its peak."


def _deviation(name: str, run: Run, stage: Stage, pairs: Sequence[Pair]) -> float | None:
    """Return a scorer's standard deviation over single responses.

    It is that of the reference's samples in the comparison, else of PPO's first batch or of the held-out pairs.
    """
    judges = (reference_std(pairs, judge) for judge in SCORERS[name][1])
    found = next((deviation for deviation in judges if deviation is not None), None)
    first = stage.curves.get("raw_score_std") or [(0, math.nan)]
    if found is None and name == PROXY and math.isfinite(first[0][1]):
        return first[0][1]
    if found is None and name == "eval_heldout":
        made = [one for one in run.of_kind("heldout") if one.seed in ("", stage.seed) and one.manifest is not None]
        metrics = made[-1].manifest.metrics if made and made[-1].manifest is not None else {}
        return metrics.get("score_std") or None
    return found


def _range(evaluations: Sequence[Evaluation], name: str) -> float:
    scores = [one.scores[name] for one in evaluations]
    return max(scores) - min(scores)


def _handed_on(stage: Stage, evaluations: Sequence[Evaluation]) -> int | None:
    if stage.manifest is None:
        return None
    if _setting(stage, "use") == "best" and "best_update" in stage.manifest.metrics:
        return int(stage.manifest.metrics["best_update"])
    return int(stage.manifest.metrics.get("updates", evaluations[-1].update))


def _setting(stage: Stage, key: str) -> Any:
    section = stage.manifest.section if stage.manifest is not None else {}
    return section.get(key, stage.settings.get(key))
