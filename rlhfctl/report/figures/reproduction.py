"""Draw what `rlhfctl reproduce gao` found: gold and the proxy over the distance, the mean over seeds with its interval.

Pure: the result as the command writes it with --json in, figures out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhfctl.report.figures.spec import Figure, Spec, chance, field, layered, series_colour, tooltip
from rlhfctl.stats.scaling import Fit, over_seeds

_PLACES = 40  # at which a curve is drawn
_KINDS = {"best_of_n": "best of n", "rl": "RL"}
_NOTES = {
    "gold": "Points: each seed. Line and band: the mean over seeds and its 95% interval, as far as all seeds reach. "
    "Dashed: the mean of the seeds' fits.",
    "proxy": "The score that is optimized, over the same distances: where it rises and gold falls, optimization has "
    "gone too far.",
}


def reproduction_figures(result: Mapping[str, Any]) -> list[Figure]:
    """Draw gold and the proxy's score for each kind of optimization, a colour per proxy."""
    return [_figure(result["seeds"], kind, score) for kind in _KINDS for score in ("gold", "proxy")]


def _figure(seeds: Sequence[Mapping[str, Any]], kind: str, score: str) -> Figure:
    sizes = sorted(seeds[0][kind], key=int)
    curves = {size: [seed[kind][size] for seed in seeds] for size in sizes}
    points = [
        {"d": d, "score": value, "seed": seed["seed"], "series": _name(size)}
        for size in sizes
        for seed in seeds
        for d, value in zip(seed[kind][size]["distance"], seed[kind][size][score], strict=True)
    ]
    means = [row | {"series": _name(size)} for size in sizes for row in _means(curves[size], score)]
    names = [_name(size) for size in sizes]
    x = field("d", title="square root of KL (nats per response)", scale={"zero": True}, axis={"tickCount": 8})
    y = field("score", title="standard deviations of the reference's samples")
    colour = series_colour(names)
    shown = tooltip(("series", "proxy"), ("seed", "seed", ",d"), ("d", "distance", ".2f"), ("score", score, "+.2f"))
    band = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    line = {"x": x, "y": y, "color": colour}
    layers: list[Spec] = [
        chance("y", 0),
        {
            "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.35},
            "encoding": {**line, "tooltip": shown},
        },
        {"data": {"values": means}, "mark": {"type": "area", "opacity": 0.15}, "encoding": band},
        {"data": {"values": means}, "mark": {"type": "line"}, "encoding": line},
    ]
    if score == "gold":
        fitted = [row | {"series": _name(size)} for size in sizes for row in _fitted(curves[size])]
        mark = {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1.5}
        layers.append({"data": {"values": fitted}, "mark": mark, "encoding": line})
    said = "gold, the true preference" if score == "gold" else "the proxy's own score"
    ends = ", ".join(f"{_name(size)} {list(_means(curves[size], score))[-1]['score']:+.2f}" for size in sizes)
    return Figure(
        f"{kind.replace('_', '-')}-{score}",
        f"{_KINDS[kind]}: {said}",
        layered(points, layers, height=260),
        _NOTES[score],
        f"{said} over the square root of KL in {_KINDS[kind]}, at the end: {ends}.",
    )


def _name(size: str) -> str:
    return f"{int(size):,} pairs"


def _places(curves: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return places from the reference to the farthest that all seeds reach."""
    return np.linspace(0.0, min(curve["distance"][-1] for curve in curves), _PLACES)


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
