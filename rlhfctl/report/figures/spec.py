"""Define a figure and the parts that all figures share: colours, scales, tooltips, a curve with its hover.

A figure is a Vega-Lite specification as a dictionary, without colours of its own: marks name a style, and `config`
gives the styles of the page (CSS variables, so that light, dark and print need no second drawing) or of a picture.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Values = Sequence[Mapping[str, Any]]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
HEIGHT = 220

CATEGORIES = 6
"""Colours of runs, seeds and scorers; a seventh begins again, with another shape of point."""

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]

PAGE = {
    "text": "var(--text)",
    "muted": "var(--muted)",
    "grid": "var(--line)",
    "policy": "var(--policy)",
    "reference": "var(--reference)",
    "gain": "var(--gain)",
    "loss": "var(--loss)",
    "paper": "var(--paper)",
    **{f"c{n}": f"var(--c{n})" for n in range(1, CATEGORIES + 1)},
}
PICTURE = {
    "text": "#1b1f24",
    "muted": "#57606a",
    "grid": "#dde1e6",
    "policy": "#0068ad",
    "reference": "#b5500b",
    "gain": "#0068ad",
    "loss": "#b5500b",
    "paper": "#ffffff",
    **dict(zip((f"c{n}" for n in range(1, CATEGORIES + 1)), (
        "#0068ad", "#b5500b", "#00795a", "#a2478c", "#6b6b00", "#4a4fb0"
    ), strict=True)),
}  # fmt: skip
"""Colours that colour-blind people tell apart, all of them at least 4.5 to 1 against white."""


@dataclass(frozen=True)
class Figure:
    """A figure with its title, one sentence that says how to read it, and its content in words for a screen reader."""

    name: str
    title: str
    spec: Spec
    caption: str = ""
    alt: str = ""
    wide: bool = False

    def drawn(self) -> Spec:
        """Return the specification with its description, which Vega writes into the picture for screen readers."""
        return {"$schema": SCHEMA, "description": self.alt or self.title, **self.spec}


def config(colours: Mapping[str, str], *, scale: float = 1.0) -> Spec:
    """Return the configuration of all figures in these colours, with texts `scale` times their size."""
    size = 12 * scale
    text = {"labelFontSize": size, "titleFontSize": size, "titleFontWeight": "normal"}
    quiet = {"labelColor": colours["muted"], "titleColor": colours["muted"]}
    return {
        "background": "transparent",
        "aria": False,  # the place of a figure has its content in words; a label per point would bury them
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif",
        "view": {"stroke": None},
        "axis": {
            **text,
            **quiet,
            "grid": True,
            "gridColor": colours["grid"],
            "domain": False,
            "tickColor": colours["grid"],
            "labelPadding": 6,
            "titlePadding": 8,
            "labelLimit": 260,
            "labelOverlap": "greedy",
            "labelSeparation": 8,
            "labelFlush": False,
        },
        "axisX": {"grid": False, "domain": True, "domainColor": colours["grid"]},
        "legend": {
            **text,
            **quiet,
            "orient": "top",
            "direction": "horizontal",
            "title": None,
            "symbolStrokeWidth": 2,
            "symbolOpacity": 1,
            "offset": 6,
            "labelLimit": 320,
            "columns": 3,
        },
        "title": {
            "color": colours["text"],
            "anchor": "start",
            "fontSize": size * 1.3,
            "subtitleColor": colours["muted"],
        },
        "text": {"color": colours["text"], "fontSize": size},
        "range": {"category": [colours[f"c{n}"] for n in range(1, CATEGORIES + 1)]},
        "line": {"strokeWidth": 2 * scale},
        "style": {
            "policy": {"color": colours["policy"]},
            "reference": {"color": colours["reference"]},
            "gain": {"color": colours["gain"]},
            "loss": {"color": colours["loss"]},
            "quiet": {"color": colours["muted"]},
            "chance": {"color": colours["muted"], "strokeDash": [4, 4], "strokeWidth": 1},
            "mark": {"color": colours["text"]},
            "hollow": {"fill": colours["paper"]},
            "note": {"color": colours["muted"], "fontSize": size},
        },
    }


def layered(values: Values, layers: Sequence[Spec], *, height: int = HEIGHT, **more: Any) -> Spec:
    """Return a figure of several layers over the same values, as wide as its place."""
    return {"width": "container", "height": height, "data": {"values": list(values)}, "layer": list(layers), **more}


def field(name: str, kind: str = "quantitative", title: str | None = None, **more: Any) -> Spec:
    """Return the encoding of a field; its scale need not include 0."""
    scale = {"scale": {"zero": False, "nice": True}} if kind == "quantitative" and "scale" not in more else {}
    return {"field": name, "type": kind, "title": title, **scale, **more}


def tooltip(*fields: tuple[str, str] | tuple[str, str, str]) -> list[Spec]:
    """Return a tooltip of (field, title) or (field, title, number format)."""
    return [
        {
            "field": name,
            "title": title,
            **({"type": "quantitative", "format": form[0]} if form else {"type": "nominal"}),
        }
        for name, title, *form in fields
    ]


def chance(axis: str, value: float) -> Spec:
    """Return a dashed line at the value that chance gives."""
    return {
        "data": {"values": [{}]},  # one line: without data of its own there is one per row of the figure
        "mark": {"type": "rule", "style": "chance"},
        "encoding": {axis: {"datum": value}},
    }


def series_colour(names: Sequence[str], **more: Any) -> Spec:
    """Return the colour of series in a fixed order, with a legend only where there are several."""
    legend = {} if len(names) > 1 else {"legend": None}
    return {"field": "series", "type": "nominal", "scale": {"domain": list(names)}, **legend, **more}


def series_dash(names: Sequence[str]) -> Spec:
    """Return a dash for the line of each series: colours repeat after CATEGORIES of them, and are then told apart."""
    dashes = [[6, 4] if index >= CATEGORIES else [1, 0] for index in range(len(names))]
    scale = {"domain": list(names), "range": dashes}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": {"symbolType": "stroke"}}


def series_shape(names: Sequence[str]) -> Spec:
    """Return a shape for each series, so that colour is not all that tells them apart."""
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(names))]
    legend = {} if len(names) > 1 else {"legend": None}
    return {"field": "series", "type": "nominal", "scale": {"domain": list(names), "range": shapes}, **legend}


def headroom(values: Iterable[float], share: float = 0.2) -> Spec:
    """Return a scale over the values with room above them for labels."""
    finite = list(values)
    low, high = min(finite), max(finite)
    return {"domain": [low, high + share * ((high - low) or 1.0)], "nice": False}


def marked(marks: Sequence[tuple[float, str]], x: Spec, most: float) -> list[Spec]:
    """Return layers of upright lines with a label at the top of each; labels right of the middle stand left of it."""
    rows = [{"at": at, "label": text, "line": line, "late": at > most / 2} for line, (at, text) in enumerate(marks)]
    place = {"x": {**x, "field": "at"}}
    words = {
        "type": "text",
        "baseline": "top",
        "align": {"expr": "datum.late ? 'right' : 'left'"},
        "dx": {"expr": "datum.late ? -6 : 6"},
        "dy": {"expr": "datum.line * 16 + 2"},
    }
    return [
        {"data": {"values": rows}, "mark": {"type": "rule", "style": "mark", "strokeWidth": 1.5}, "encoding": place},
        {
            "data": {"values": rows},
            "mark": words,
            "encoding": {**place, "y": {"value": 0}, "text": {"field": "label", "type": "nominal"}},
        },
    ]


def nearest(x: Spec, y: Spec, shown: list[Spec], detail: Spec | None = None) -> Spec:
    """Return a layer of points that appear under the pointer and show the tooltip of the nearest value."""
    hover = {"name": "hover", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}
    return {
        "params": [hover],
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {
            "x": x,
            "y": y,
            "tooltip": shown,
            **({"color": detail} if detail is not None else {}),
            "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0},
        },
    }
