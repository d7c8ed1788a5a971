"""Draw what `rlhfctl reproduce gao` and `rloo` found: gold and the proxy over the distance, the mean over seeds.

Pure: the result as the command writes it with --json in, figures out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhfctl.report.figures.spec import (
    CATEGORIES,
    Figure,
    Spec,
    chance,
    field,
    layered,
    series_colour,
    series_dash,
    tooltip,
)
from rlhfctl.stats.scaling import Fit, over_seeds

_PLACES = 40  # at which a curve is drawn
_KINDS = {"best_of_n": "best of n", "rl": "RL"}
_MOST_BANDS = 3  # series whose intervals are drawn
_MANY = "Points: each seed. Line: the mean over seeds, as far as all seeds reach."
_NOTES = {
    "gold": "Points: each seed. Line and band: the mean over seeds and its 95% interval, as far as all seeds reach. "
    "Dashed: the mean of the seeds' fits.",
    "proxy": "The score that is optimized, over the same distances: where it rises and gold falls, optimization has "
    "gone too far.",
}


def reproduction_figures(result: Mapping[str, Any]) -> list[Figure]:
    """Draw gold and the proxy's score for each kind of optimization, a colour per proxy."""
    return [_figure(result["seeds"], kind, score) for kind in _KINDS for score in ("gold", "proxy")]


def algorithm_figures(result: Mapping[str, Any]) -> list[Figure]:
    """Draw what `rlhfctl reproduce rloo` found: gold and the reward model's score, a colour per algorithm."""
    seeds = result["seeds"]
    series = {name: [seed["curves"][name] for seed in seeds] for name in seeds[0]["curves"]}
    numbers = [seed["seed"] for seed in seeds]
    said = {"gold": "gold, the true preference", "proxy": "the reward model's score"}
    return [
        _curves(f"algorithms-{score}", f"All algorithms: {words}", series, numbers, score, "algorithm", words, _MANY)
        for score, words in said.items()
    ]


def _figure(seeds: Sequence[Mapping[str, Any]], kind: str, score: str) -> Figure:
    series = {_name(size): [seed[kind][size] for seed in seeds] for size in sorted(seeds[0][kind], key=int)}
    said = "gold, the true preference" if score == "gold" else "the proxy's own score"
    numbers = [seed["seed"] for seed in seeds]
    name, title = f"{kind.replace('_', '-')}-{score}", f"{_KINDS[kind]}: {said}"
    return _curves(name, title, series, numbers, score, "proxy", f"{said} in {_KINDS[kind]}", _NOTES[score])


def _curves(
    name: str,
    title: str,
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    score: str,
    kind: str,
    said: str,
    note: str,
) -> Figure:
    """Draw the curves of each series, one per seed: points, mean, and the fits of gold where the curves have them.

    With more than three series bands would hide each other, and are left out.
    """
    points = [
        {"d": d, "score": value, "seed": seed, "series": one}
        for one, curves in series.items()
        for seed, curve in zip(seeds, curves, strict=True)
        for d, value in zip(curve["distance"], curve[score], strict=True)
    ]
    means = [row | {"series": one} for one, curves in series.items() for row in _means(curves, score)]
    x = field("d", title="square root of KL (nats per response)", scale={"zero": True}, axis={"tickCount": 8})
    y = field("score", title="standard deviations of the reference's samples")
    many = len(series) > CATEGORIES
    colour = series_colour(list(series), **({"legend": {"symbolType": "stroke"}} if many else {}))
    shown = tooltip(("series", kind), ("seed", "seed", ",d"), ("d", "distance", ".2f"), ("score", score, "+.2f"))
    band = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    line = {"x": x, "y": y, "color": colour}
    layers: list[Spec] = [
        chance("y", 0),
        {
            "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.35},
            "encoding": {**line, "tooltip": shown},
        },
    ]
    if len(series) <= _MOST_BANDS:
        layers.append({"data": {"values": means}, "mark": {"type": "area", "opacity": 0.15}, "encoding": band})
    dashed = line | ({"strokeDash": series_dash(list(series))} if many else {})
    layers.append({"data": {"values": means}, "mark": {"type": "line"}, "encoding": dashed})
    if score == "gold" and all("fit" in curve for curves in series.values() for curve in curves):
        fitted = [row | {"series": one} for one, curves in series.items() for row in _fitted(curves)]
        mark = {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1.5}
        layers.append({"data": {"values": fitted}, "mark": mark, "encoding": line})
    ends = ", ".join(f"{one} {list(_means(curves, score))[-1]['score']:+.2f}" for one, curves in series.items())
    described = f"{said} over the square root of KL, at the end: {ends}."
    return Figure(name, title, layered(points, layers, height=260), note, described)


def _name(size: str) -> str:
    return f"{int(size):,} pairs"


def _places(curves: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return places from the reference to the farthest that all seeds reach."""
    return np.linspace(0.0, min(max([0.0, *curve["distance"]]) for curve in curves), _PLACES)


def _means(curves: Sequence[Mapping[str, Any]], score: str) -> Iterator[dict[str, float]]:
    places = _places(curves)
    values = [np.interp(places, [0.0, *curve["distance"]], [0.0, *curve[score]]) for curve in curves]
    for d, column in zip(places, np.transpose(values), strict=True):
        mean, interval = over_seeds(column.tolist())
        yield {"d": float(d), "score": mean, "low": interval.low, "high": interval.high}


def _fitted(curves: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, float]]:
    places = _places(curves)
    values = [Fit(**curve["fit"]).at(places) for curve in curves]
    for d, mean in zip(places, np.mean(values, axis=0), strict=True):
        yield {"d": float(d), "score": float(mean)}
