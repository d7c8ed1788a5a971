"""Show whether PPO went too far: the reward that it raises, beside scorers that it never sees, over KL.

Reads the evaluations of a PPO stage. Scores are in standard deviations of the reference's responses, from the first
evaluation on, so that scorers with different units can be drawn together (Gao et al. 2022). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhfctl.dashboard.text import number
from rlhfctl.report.facts.measures import reference_std
from rlhfctl.report.facts.records import Pair, Run, Stage
from rlhfctl.stats.overoptimization import Overoptimization, Point, best_evaluation, overoptimized

SCORERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "eval_score": ("reward that PPO raises", ("reward_model", "reward_function")),
    "eval_heldout": ("held-out reward model", ("heldout",)),
    "eval_gold": ("gold, the true preference", ("gold",)),
}
"""Metric of an evaluation -> its name on the page, and the judges that give the same scores in the comparison."""

PROXY, HELDOUT, GOLD = "eval_score", "eval_heldout", "eval_gold"

CLEAR_FALL = 0.2
"""Standard deviations by which a scorer without standard errors must have fallen from its peak before the page says so.

The held-out reward has standard errors: there the rule of the alarm decides (stats/overoptimization.py)."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during PPO: its update, KL (nats per response), each scorer's mean and its standard error."""

    update: int
    kl: float
    scores: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)  # of the scorers that report one


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

    def exploited(self) -> Overoptimization | None:
        """Tell, as the alarm does, whether the proxy rose while the held-out reward fell; None: not so, or not known.

        Raises KeyError where one of the two has no standard errors.
        """
        return overoptimized(
            [
                Point(one.update, one.scores[PROXY], one.scores[HELDOUT], one.errors[PROXY], one.errors[HELDOUT])
                for one in self.evaluations
            ]
        )

    @property
    def has_errors(self) -> bool:
        """Tell whether each evaluation has the standard errors that the alarm's rule needs."""
        return all({PROXY, HELDOUT} <= set(one.errors) for one in self.evaluations)


def optimization_of(run: Run, stage: Stage) -> Optimization | None:
    """Collect the evaluations of a PPO stage; None where there are fewer than two."""
    pairs = [pair for pair in run.pairs if pair.seed == stage.seed]
    curves = {name: dict(stage.curves.get(name, ())) for name in (*SCORERS, "eval_kl")}
    names = [name for name in SCORERS if curves[name]]
    steps = sorted(set(curves["eval_kl"]).intersection(*(curves[name] for name in names)) if names else ())
    errors = {name: dict(stage.curves.get(f"{name}_se", ())) for name in names}
    evaluations = [
        Evaluation(
            step,
            max(0.0, curves["eval_kl"][step]),
            {name: curves[name][step] for name in names},
            {name: errors[name][step] for name in names if math.isfinite(errors[name].get(step, math.nan))},
        )
        for step in steps
        if all(math.isfinite(curves[name][step]) for name in (*names, "eval_kl"))
    ]
    if len(evaluations) < 2:
        return None
    deviations = {name: _deviation(name, run, stage, pairs) for name in names}
    in_deviations = all(deviations.values())
    units = {name: deviations[name] if in_deviations else _range(evaluations, name) for name in names}
    guide = next((name for name in (HELDOUT, GOLD) if name in names), "")
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


def told(found: Optimization) -> str:
    """Say in words whether the scorers that PPO never sees followed the reward that it raises."""
    if not found.guide:
        return (
            "Nothing independent was measured during PPO. With reward.heldout: true a second reward model shows "
            "whether the gain is real."
        )
    followed, said = _heldout_of(found) if found.guide == HELDOUT and found.has_errors else _other(found, found.guide)
    if found.guide == GOLD or GOLD not in found.units:
        return said
    gold_followed, of_gold = _other(found, GOLD)
    if gold_followed:
        return f"{said} Gold, the true preference, has not clearly fallen from its peak."
    if followed:
        gain = found.change(HELDOUT, len(found.evaluations) - 1)
        return f"{of_gold} The held-out reward model did not see it: it {_moved(gain)} {_unit(found)}."
    peak, fall = found.fall(GOLD)
    at = found.evaluations[peak].update
    return f"{said} Gold, the true preference, fell by {number(fall, 2)} {_unit(found)} from its peak (update {at:,})."


def _heldout_of(found: Optimization) -> tuple[bool, str]:
    """Tell whether the held-out reward followed, by the alarm's rule, which knows the noise of the evaluations."""
    name, last = SCORERS[HELDOUT][0], len(found.evaluations) - 1
    exploited = found.exploited()
    if exploited is not None:
        then = next(one for one in found.evaluations if one.update == exploited.peak_step)
        rise = (exploited.proxy_now - exploited.proxy_then) / found.units[PROXY]
        fall = (exploited.heldout_peak - exploited.heldout_now) / found.units[HELDOUT]
        said = _too_far(found, HELDOUT, f"about update {then.update:,}", then.kl, rise, fall)
        return False, f"{said}{_better(found)}"
    gain, (peak, fall) = found.change(HELDOUT, last), found.fall(HELDOUT)
    said = f"No sign of over-optimization: the {name} {_moved(gain)} {_unit(found)}"
    if fall <= 0:
        return True, f"{said} and is at its peak."
    at = found.evaluations[peak].update
    return True, f"{said}. It is {number(fall, 2)} below its peak (update {at:,}), no more than chance gives."


def _other(found: Optimization, scorer: str) -> tuple[bool, str]:
    """Tell whether a scorer followed whose noise is not known: a fall counts from CLEAR_FALL on."""
    unit, name, last = _unit(found), SCORERS[scorer][0], len(found.evaluations) - 1
    peak, fall = found.fall(scorer)
    at = found.evaluations[peak]
    if fall < CLEAR_FALL:
        moved = _moved(found.change(scorer, last))
        said = f"No sign of over-optimization: the {name} {moved} {unit} and has not clearly fallen from its peak."
        return True, said
    rise = found.change(PROXY, last) - found.change(PROXY, peak) if PROXY in found.units else 0
    if rise <= 0:
        return False, (
            f"The {name} was highest at update {at.update:,} (KL {number(at.kl, 3)}) and has fallen by "
            f"{number(fall, 2)} {unit} since."
        )
    said = _too_far(found, scorer, f"update {at.update:,}", at.kl, rise, fall)
    return False, f"{said} The policy of update {at.update:,} is the better one."


def _too_far(found: Optimization, scorer: str, then: str, kl: float, rise: float, fall: float) -> str:
    """Say that the proxy rose and a scorer fell from a time on, up to the last evaluation."""
    now = found.evaluations[-1]
    return (
        f"PPO went too far: from {then} (KL {number(kl, 3)}) to update {now.update:,} (KL {number(now.kl, 3)}) the "
        f"reward that it raises rose by {number(rise, 2)} {_unit(found)}, while the {SCORERS[scorer][0]} fell by "
        f"{number(fall, 2)}."
    )


def _better(found: Optimization) -> str:
    if found.recommended is None:
        return ""
    return f" The policy of update {found.evaluations[found.recommended].update:,} is the better one."


def _moved(gain: float) -> str:
    return f"rose by {number(gain, 2)}" if gain > 0 else f"changed by {number(gain, 2)}"


def _unit(found: Optimization) -> str:
    return "standard deviations" if found.in_deviations else "of its range"


def _deviation(name: str, run: Run, stage: Stage, pairs: Sequence[Pair]) -> float | None:
    """Return a scorer's standard deviation over single responses.

    It is that of the reference's samples in the comparison, else of PPO's first batch or of the held-out pairs.
    """
    judges = (reference_std(pairs, judge) for judge in SCORERS[name][1])
    found = next((deviation for deviation in judges if deviation is not None), None)
    first = stage.curves.get("raw_score_std") or [(0, math.nan)]
    if found is None and name == PROXY and math.isfinite(first[0][1]):
        return first[0][1]
    if found is None and name == HELDOUT:
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
