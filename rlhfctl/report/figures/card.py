"""Draw the reward model's card: reliability, margins, probes, and best-of-n curves with their peak.

Pure: the content of card.json in, figures out. A part that the card lacks gives no figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhfctl.dashboard.text import number
from rlhfctl.report.facts.compared import interval
from rlhfctl.report.facts.measures import BINS
from rlhfctl.report.figures.spec import (
    Figure,
    Spec,
    chance,
    field,
    headroom,
    layered,
    marked,
    series_colour,
    series_shape,
    tooltip,
)

SCORERS = {"proxy": "the reward model itself", "heldout": "held-out reward model", "gold": "gold"}
_DISAGREEMENT = "disagreement of the two reward models"


def card_figures(card: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a card, in the order of the page."""
    return [figure for draw in (_optimization, _reliability, _margins, _probes) for figure in draw(card)]


def _reliability(card: Mapping[str, Any]) -> Iterator[Figure]:
    bins = [one for one in (card.get("calibration") or {}).get("bins") or () if one.get("n")]
    if not bins:
        return
    x = field("predicted", title="predicted share", scale={"domain": [0, 1]}, axis={"format": ".0%", "tickCount": 5})
    y = field("observed", title="observed share", scale={"domain": [0, 1]}, axis={"format": ".0%", "tickCount": 5})
    shown = tooltip(("predicted", "predicted", ".0%"), ("observed", "observed", ".0%"), ("n", "pairs", ",d"))
    size = {"field": "n", "type": "quantitative", "scale": {"range": [30, 300]}, "legend": None}
    diagonal = {"values": [{"at": 0}, {"at": 1}]}
    rule: Spec = {
        "data": diagonal,
        "mark": {"type": "line", "style": "chance"},
        "encoding": {"x": field("at", scale={"domain": [0, 1]}), "y": field("at", scale={"domain": [0, 1]})},
    }
    ece = card["calibration"].get("ece")
    yield Figure(
        "reliability",
        "Is it as sure as it is right?",
        layered(
            bins,
            [
                rule,
                {"mark": {"type": "line", "style": "policy"}, "encoding": {"x": x, "y": y}},
                {
                    "mark": {"type": "point", "style": "policy", "filled": True, "opacity": 1},
                    "encoding": {"x": x, "y": y, "size": size, "tooltip": shown},
                },
            ],
        ),
        "On the dashed line, pairs that it calls 80% sure are right 80% of the time; below it the model is too sure.",
        "Reliability diagram" + (f", expected calibration error {number(ece, 2)}." if ece is not None else "."),
    )


def _margins(card: Mapping[str, Any]) -> Iterator[Figure]:
    values = (card.get("margins") or {}).get("values") or []
    if not values:
        return
    largest = max(abs(value) for value in values) or 1.0
    counts, edges = np.histogram(values, bins=np.linspace(-largest, largest, 2 * (BINS // 2) + 1))
    rows = [
        {"low": float(low), "high": float(high), "pairs": int(count), "side": "loss" if index < BINS // 2 else "gain"}
        for index, (count, low, high) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    ]
    x = field("low", title="score of chosen less rejected", bin={"binned": True}, axis={"tickCount": 8})
    y = field("pairs", title="pairs", scale={"zero": True})
    shown = tooltip(("low", "from", ".3"), ("high", "to", ".3"), ("pairs", "pairs", ",d"))
    bars = [
        {
            "transform": [{"filter": f"datum.side === '{side}'"}],
            "mark": {"type": "bar", "style": side, "binSpacing": 1},
            "encoding": {"x": x, "x2": {"field": "high"}, "y": y, "tooltip": shown},
        }
        for side in ("loss", "gain")
    ]
    right = sum(value > 0 for value in values) / len(values)
    yield Figure(
        "margins",
        "Margins of held-out pairs",
        layered(rows, [*bars, chance("x", 0)]),
        "Pairs right of 0 are ranked as people did. A tall middle means that most pairs are close calls.",
        f"Histogram of margins: {right:.0%} of the pairs are ranked as people did.",
    )


def _probes(card: Mapping[str, Any]) -> Iterator[Figure]:
    probes = card.get("probes") or []
    if not probes:
        return
    rows = [
        {
            "name": str(one["name"]).replace("_", " "),
            "share": one["share_above"],
            "delta": one["delta_mean"],
            "n": one["n"],
        }
        for one in probes
    ]
    x = field(
        "share",
        title="share that scores higher",
        scale={"domain": [0, 1]},
        axis={"format": ".0%", "tickCount": 5},
    )
    y = field("name", "nominal", None, sort=None, axis={"title": None, "grid": False, "ticks": False})
    shown = tooltip(
        ("name", "probe"), ("share", "score higher", ".0%"), ("delta", "mean change", "+.3"), ("n", "answers", ",d")
    )
    yield Figure(
        "probes",
        "Can it be fooled?",
        layered(
            rows,
            [
                {
                    "mark": {"type": "bar", "style": "policy", "height": 12},
                    "encoding": {"x": x, "y": y, "tooltip": shown},
                },
                chance("x", 0.5),
            ],
            height=26 * len(rows) + 10,
        ),
        "No change makes an answer better: a bar past the dashed line means that the change is rewarded.",
        "Probes: " + ", ".join(f"{row['name']} {row['share']:.0%}" for row in rows) + ".",
        wide=True,
    )


def _optimization(card: Mapping[str, Any]) -> Iterator[Figure]:
    found = card.get("optimization") or {}
    ns, kls = found.get("n") or [], found.get("kl") or []
    rows: list[dict[str, Any]] = []
    for key, name in SCORERS.items():
        rows += _curve_rows(name, ns, kls, found.get(key))
    rows += [
        {
            "n": n,
            "kl": kl,
            "root": math.sqrt(max(0.0, kl)),
            "mean": value,
            "low": value,
            "high": value,
            "series": _DISAGREEMENT,
        }
        for n, kl, value in zip(ns, kls, found.get("disagreement") or (), strict=False)
    ]
    if len(rows) < 2:
        return
    names = list(dict.fromkeys(row["series"] for row in rows))
    colour, shape = series_colour(names), series_shape(names)
    x = field("root", title="square root of KL (nats)", axis={"tickCount": 8})
    scale = headroom(row[end] for row in rows for end in ("low", "high"))
    y = field("mean", title="standard deviations of the reference's samples", scale=scale)
    shown = tooltip(
        ("series", "scorer"), ("n", "best of", ",d"), ("kl", "KL", ".3"), ("mean", "mean", "+.2f"),
        ("low", "from", "+.2f"), ("high", "to", "+.2f"),
    )  # fmt: skip
    layers: list[Spec] = [
        {
            "mark": {"type": "area", "opacity": 0.15},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        {"mark": {"type": "line"}, "encoding": {"x": x, "y": y, "color": colour}},
        {
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": shown},
        },
    ]
    peak = found.get("peak")
    if peak:
        text = f"peak: best of {peak['n']}, KL {number(peak['kl'], 3)}"
        layers += marked([(math.sqrt(max(0.0, peak["kl"])), text)], x, max(row["root"] for row in rows))
    yield Figure(
        "best-of-n",
        "Will it survive optimization?",
        layered(rows, layers, height=260),
        "Choosing the best of n samples shows what more optimization will do: where the held-out curve bends down, a "
        "higher reward is no better answer.",
        "Best-of-n curves of " + ", ".join(names) + (f"; peak at KL {number(peak['kl'], 3)}." if peak else "."),
        wide=True,
    )


def _curve_rows(name: str, ns: Sequence[int], kls: Sequence[float], curve: Any) -> Iterator[dict[str, Any]]:
    means = (curve or {}).get("mean") or []
    intervals = (curve or {}).get("ci95") or []
    for index, (n, kl, mean) in enumerate(zip(ns, kls, means, strict=False)):
        low, high = (interval(intervals[index]) if index < len(intervals) else None) or (mean, mean)
        yield {
            "n": n,
            "kl": kl,
            "root": math.sqrt(max(0.0, kl)),
            "mean": mean,
            "low": low,
            "high": high,
            "series": name,
        }
