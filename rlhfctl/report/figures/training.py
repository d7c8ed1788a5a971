"""Draw training: the curve of each metric, reward against KL, the over-optimization curve, times of stages. Pure.

Curves of several seeds or runs are drawn over each other. A metric on training prompts and its twin on rows held aside
(`score`, `eval_score`) share a figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlhfctl.dashboard.text import number
from rlhfctl.metrics import Metric, metrics_of, ranked, step_name
from rlhfctl.report.facts.measures import Cost, Thinned, thin
from rlhfctl.report.facts.optimization import SCORERS, Optimization
from rlhfctl.report.facts.records import Point, Stage
from rlhfctl.report.figures.spec import (
    Figure,
    Spec,
    chance,
    field,
    headroom,
    layered,
    marked,
    nearest,
    series_colour,
    series_shape,
    tooltip,
)

_TRAIN, _EVAL = "training", "held aside"
_NO_CURVE = ("epoch", "num_tokens", "min_reward", "max_reward")  # they say little, or another curve says it


@dataclass(frozen=True)
class Drawn:
    """The curves of one kind of stage: those that matter most, and all others."""

    title: str
    main: Sequence[Figure]
    others: Sequence[Figure]
    merged: int  # reports per point of the most thinned curve; 1: every report is a point


def curves(place: str, stages: Mapping[str, Stage], series: Sequence[str]) -> Drawn | None:
    """Draw the curves of stages of one place, by the name of their seed or run; None without curves.

    `series` are the names of all seeds or runs of the page, in the order of their colours.
    """
    names = list(dict.fromkeys(name for stage in stages.values() for name in stage.curves))
    names = [name for name in names if not _says_little(name) and _has_several(name, stages.values())]
    twins = {name: f"eval_{name}" for name in names if f"eval_{name}" in names}
    alone = [name for name in names if name not in twins.values()]
    listed = [metric.name for metric in ranked(place, "screen")]
    first = [name for name in listed if name in alone]
    rest = [name for name in alone if name not in first]
    if not alone:
        return None
    merged = max(
        thin(stage.curves[name])[0].count for stage in stages.values() for name in names if _drawable(stage, name)
    )

    def drawn(name: str) -> Figure:
        return _curve(place, name, stages, twins.get(name), series)

    return Drawn(place, [drawn(name) for name in first], [drawn(name) for name in rest], merged)


def _says_little(name: str) -> bool:
    return name in _NO_CURVE or name.endswith("_se")  # the standard error of another metric


def _has_several(name: str, stages: Iterable[Stage]) -> bool:
    return any(len(_finite(stage.curves.get(name, ()))) > 1 for stage in stages)


def _drawable(stage: Stage, name: str) -> bool:
    return bool(_finite(stage.curves.get(name, ())))


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point[1])]


def _curve(place: str, name: str, stages: Mapping[str, Stage], twin: str | None, all_series: Sequence[str]) -> Figure:
    """Draw one metric over steps: a line per series, and its twin on rows held aside as points."""
    metric = next((one for one in metrics_of(place) if one.name == name), Metric(name, "", ""))
    several = len(all_series) > 1
    splits = {name: _TRAIN, **({twin: _EVAL} if twin is not None else {})}
    values = [
        _value(point, series if several else split, split)
        for series, stage in stages.items()
        for each, split in splits.items()
        for point in thin(stage.curves.get(each, ()))
    ]
    step, unit = step_name(place), metric.unit
    x = field("step", title=step, axis={"tickMinStep": 1, "tickCount": 5, "format": ",d"})
    y = field("mean", title=unit or None, axis={"tickCount": 5, "format": ".5~r"})
    names = list(splits.values())
    colour = series_colour(all_series, legend=None) if several else series_colour(names)
    dash = {
        "field": "split", "type": "nominal", "scale": {"domain": [_TRAIN, _EVAL], "range": [[1, 0], [4, 3]]},
        "legend": None,
    }  # fmt: skip
    line: Spec = {
        "mark": {"type": "line", "interpolate": "linear"},
        "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash},
    }
    layers = [line]
    if any(value["low"] != value["high"] for value in values):
        band = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
        layers.insert(0, {"mark": {"type": "area", "opacity": 0.18}, "encoding": band})
    if twin is not None:
        layers.append(
            {
                "transform": [{"filter": f"datum.split === '{_EVAL}'"}],
                "mark": {"type": "point", "filled": True, "size": 30},
                "encoding": {"x": x, "y": y, "color": colour},
            }
        )
    shown = tooltip(("series", "series"), ("split", "rows"), ("step", step, ",d"), ("mean", name, ".4~g"))
    layers.append(nearest(x, y, shown, colour))
    last = {series: _finite(stage.curves.get(name, ())) for series, stage in stages.items()}
    ends = ", ".join(
        f"{series or name} from {number(p[0][1], 3)} to {number(p[-1][1], 3)}" for series, p in last.items() if p
    )
    return Figure(
        f"{place}-{name}".replace("/", "-"),
        metric.label or name,
        layered(values, layers, height=170),
        _sentence(metric.hint or metric.meaning.replace("`", "") or name)
        + (" Dashed: rows held aside." if several and twin is not None else ""),
        f"{name} of the stage {place} by {step}: {ends}.",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _value(point: Thinned, series: str, split: str) -> dict[str, object]:
    return {
        "step": point.step, "mean": _short(point.mean), "low": _short(point.low), "high": _short(point.high),
        "series": series, "split": split,
    }  # fmt: skip


def _short(value: float) -> float:
    """Round to six significant digits: a chart shows three, and the page stays small."""
    return float(f"{value:.6g}")


# ---------------------------------------------------------------- KL


def reward_over_kl(stages: Mapping[str, Stage]) -> Figure | None:
    """Draw the score of each PPO update over its KL; None without both. An estimate of KL below 0 is drawn at 0."""
    values = []
    for series, stage in stages.items():
        kls, scores = dict(stage.curves.get("kl", ())), stage.curves.get("score", ())
        both = [(step, kls[step], score) for step, score in scores if math.isfinite(kls.get(step, math.nan))]
        both = [(step, kl, score) for step, kl, score in both if math.isfinite(score)]
        merged = zip(
            thin([(step, kl) for step, kl, _ in both]), thin([(step, score) for step, _, score in both]), strict=True
        )
        values += [
            {
                "step": kl.step,
                "kl": max(0.0, _short(kl.mean)),
                "score": _short(score.mean),
                "series": series or "update",
            }
            for kl, score in merged
        ]
    if len(values) < 2:
        return None
    names = [series or "update" for series in stages]
    x, y = field("kl", title="KL from the reference, nats per response"), field("score", title="score of the batch")
    shown = tooltip(("series", "series"), ("step", "update", ",d"), ("kl", "KL", ".3"), ("score", "score", ".3"))
    colour = series_colour(names)
    later = {"field": "step", "type": "quantitative", "scale": {"range": [0.2, 0.95]}, "legend": None}
    return Figure(
        "reward-kl",
        "Reward against KL",
        layered(
            values,
            [
                {
                    "mark": {"type": "point", "filled": True, "size": 40},
                    "encoding": {"x": x, "y": y, "color": colour, "opacity": later, "tooltip": shown},
                },
            ],
        ),
        "Each dot is an update, later ones stronger; PPO moves right as it leaves the reference. Where the dots "
        "flatten, more KL buys little reward.",
        f"Score over KL, from {_at(values[0])} to {_at(values[-1])}.",
        wide=True,
    )


def _at(value: Mapping[str, object]) -> str:
    return f"{number(float(str(value['score'])), 3)} at KL {number(float(str(value['kl'])), 3)}"


def over_optimization(found: Optimization) -> Figure:
    """Draw each scorer's change over the square root of KL, with the recommended evaluation and the one handed on."""
    values = [
        {
            "root": math.sqrt(one.kl),
            "kl": one.kl,
            "update": one.update,
            "change": found.change(scorer, index),
            "raw": one.scores[scorer],
            "series": SCORERS[scorer][0],
        }
        for scorer in found.scorers
        for index, one in enumerate(found.evaluations)
    ]
    names = [SCORERS[scorer][0] for scorer in found.scorers]
    unit = "standard deviations" if found.in_deviations else "share of its range"
    x = field("root", title="square root of KL (nats per response)", axis={"tickCount": 8})
    y = field("change", title=f"change, {unit}", scale=headroom(float(str(value["change"])) for value in values))
    colour, shape = series_colour(names), series_shape(names)
    shown = tooltip(
        ("series", "scorer"), ("update", "update", ",d"), ("kl", "KL", ".3"), ("change", "change", "+.2f"),
        ("raw", "score", ".3"),
    )  # fmt: skip
    layers: list[Spec] = [
        chance("y", 0),
        {
            "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6},
            "encoding": {"x": x, "y": y, "color": colour, "order": {"field": "update", "type": "quantitative"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": shown},
        },
        *marked(_marks(found), x, max(math.sqrt(one.kl) for one in found.evaluations)),
    ]
    ends = ", ".join(f"{SCORERS[s][0]} {found.change(s, len(found.evaluations) - 1):+.2f}" for s in found.scorers)
    return Figure(
        f"over-optimization-{found.stage}".replace("/", "-"),
        "Did PPO go too far?",
        layered(values, layers, height=270),
        "All curves start at 0. Where the reward that PPO raises goes on rising and the others fall, the policy has "
        "learned to please its reward and not the task.",
        f"Change of each scorer over the square root of KL, at the end: {ends} {unit}.",
        wide=True,
    )


def _marks(found: Optimization) -> list[tuple[float, str]]:
    """Return place and label of the recommended policy and of the one that the stage handed on."""
    marks: dict[int, list[str]] = {}
    if found.recommended is not None:
        marks.setdefault(found.recommended, []).append("recommended")
    handed = [index for index, one in enumerate(found.evaluations) if one.update == found.handed_on]
    for index in handed[:1]:
        marks.setdefault(index, []).append("handed on")
    return [
        (math.sqrt(found.evaluations[index].kl), f"{' and '.join(words)}: update {found.evaluations[index].update:,}")
        for index, words in sorted(marks.items())
    ]


# ---------------------------------------------------------------- costs


def times(costs: Sequence[Cost]) -> Figure | None:
    """Draw how long each stage took; None where no time is known."""
    rows = [{"stage": one.stage, "minutes": one.seconds / 60} for one in costs if one.seconds is not None]
    if not rows:
        return None
    y = field("stage", "nominal", None, sort=None, axis={"title": None, "grid": False, "ticks": False})
    x = field("minutes", title="minutes", scale={"zero": True})
    return Figure(
        "times",
        "Time of each stage",
        layered(
            rows,
            [
                {
                    "mark": {"type": "bar", "style": "policy", "height": 12},
                    "encoding": {"x": x, "y": y, "tooltip": tooltip(("stage", "stage"), ("minutes", "minutes", ".2f"))},
                }
            ],
            height=_row_height(len(rows)),
        ),
        "The stage with the longest bar is the one to shorten first.",
        "Minutes per stage: "
        + ", ".join(f"{row['stage']} {number(float(str(row['minutes'])), 3)}" for row in rows)
        + ".",
    )


def _row_height(rows: int) -> int:
    return 26 * rows + 10
