"""Draw what the comparison found: win rates, scores of both sides, changes, effects of length, groups. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from rlhfctl.dashboard.text import number
from rlhfctl.report.facts.measures import BINS, Bin, Group, LengthEffect, PromptResult
from rlhfctl.report.facts.records import Comparison, Judged, Pair, SeedResult
from rlhfctl.report.figures.spec import Figure, Spec, chance, field, layered, tooltip
from rlhfctl.verdict import share

MOST_DOTS = 600
"""Responses drawn as dots; more of them would hide each other."""

_SIDES = {"domain": ["policy", "reference"]}
_WORDS = {"better": "policy better", "worse": "policy worse", "undecided": "undecided"}
_ROW = 26  # pixels of a row


def win_rates(found: Comparison) -> Figure:
    """Draw the win rate of each judge in the main comparison, and of the primary judge in each control."""
    rows = [_rate(one, f"{name}{'' if one.independent is not False else ' *'}", "main comparison")
            for name, one in sorted(found.judges.items(), key=lambda item: item[0] != found.primary)]  # fmt: skip
    rows += [
        _rate(control.judges[found.primary], control.label, control.role)
        for control in found.controls
        if found.primary in control.judges
    ]
    starred = any(one.independent is False for one in found.judges.values())
    return Figure(
        "win-rates",
        "Win rates",
        _forest(rows),
        "Each line is a 95% interval. Right of the dashed line the policy wins more prompts than it loses."
        + (" A star marks the reward that PPO trained on." if starred else ""),
        f"Win rates with 95% intervals: {_listed(rows)}.",
        wide=True,
    )


def seeds(results: Sequence[SeedResult]) -> Figure:
    """Draw each seed's win rate by the primary judge."""
    rows = [_rate(one.judged, one.seed, "seed") for one in results]
    return Figure(
        "seeds",
        "Win rate of each seed",
        _forest(rows),
        "Each line is one seed's 95% interval over prompts. Seeds that disagree mean that the result rests on luck.",
        f"Win rates of seeds: {_listed(rows)}.",
        wide=True,
    )


def _rate(one: Judged, name: str, group: str) -> dict[str, object]:
    low, high = one.win_rate_ci or (one.win_rate, one.win_rate)
    result = _WORDS.get(one.verdict, one.verdict or "undecided")
    return {"name": name, "group": group, "rate": one.win_rate, "low": low, "high": high, "result": result}


def _listed(rows: Sequence[dict[str, object]]) -> str:
    return ", ".join(f"{row['name']} {share(float(str(row['rate'])))}" for row in rows)


def _forest(rows: Sequence[dict[str, object]]) -> Spec:
    """Draw one interval per row, in the given order; colour and shape say the result."""
    y = field("name", "nominal", None, sort=None, axis={"title": None, "grid": False, "ticks": False})
    results = list(_WORDS.values())
    colour = {"field": "result", "type": "nominal", "scale": {"domain": results}}
    shape = {
        "field": "result",
        "type": "nominal",
        "scale": {"domain": results, "range": ["circle", "square", "diamond"]},
    }
    x = field(
        "rate",
        title="win rate (ties half)",
        scale={"domain": [0, 1]},
        axis={"format": ".0%", "tickCount": 10},
    )
    shown = tooltip(
        ("name", "comparison"), ("group", "kind"), ("rate", "win rate", ".1%"), ("low", "from", ".1%"),
        ("high", "to", ".1%"), ("result", "result"),
    )  # fmt: skip
    ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "color": colour, "tooltip": shown}
    return layered(
        rows,
        [
            chance("x", 0.5),
            {"mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.55}, "encoding": ends},
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": shown},
            },
        ],
        height=_ROW * len(rows) + 10,
    )


def distribution(bins: Sequence[Bin], judge: str, results: Sequence[PromptResult]) -> Figure:
    """Draw how one judge's scores of both sides are spread."""
    values = [
        {"low": one.low, "high": one.high, "share": value, "side": side}
        for one in bins
        for side, value in (("policy", one.policy), ("reference", one.reference))
    ]
    mean = [float(np.mean([getattr(one, side) for one in results])) for side in ("policy", "reference")]
    means = [{"mean": value, "side": side} for side, value in zip(("policy", "reference"), mean, strict=True)]
    colour = {"field": "side", "type": "nominal", "scale": _SIDES}
    x = field("low", title=f"score by {judge}", bin={"binned": True}, axis={"tickCount": 8})
    y = field("share", title="share of responses", axis={"format": ".0%"}, scale={"zero": True}, stack=None)
    shown = tooltip(
        ("side", "side"), ("low", "from", ".3"), ("high", "to", ".3"), ("share", "share of responses", ".1%")
    )
    lines = {"x": {"field": "mean", "type": "quantitative"}, "color": colour}
    return Figure(
        f"scores-{judge}",
        f"Scores by {judge}",
        layered(
            values,
            [
                {
                    "mark": {"type": "bar", "opacity": 0.5, "binSpacing": 0},
                    "encoding": {"x": x, "x2": {"field": "high"}, "y": y, "color": colour, "tooltip": shown},
                },
                {
                    "data": {"values": means},
                    "mark": {"type": "rule", "strokeWidth": 2},
                    "encoding": {**lines, "tooltip": tooltip(("side", "side"), ("mean", "mean", ".3"))},
                },
            ],
        ),
        "The further the policy's bars lie to the right of the reference's, the more its responses score; the lines "
        "are the means.",
        f"Histogram of scores by {judge}: mean {number(mean[0], 3)} of the policy, {number(mean[1], 3)} of the "
        "reference.",
    )


def changes(results: Sequence[PromptResult], judge: str) -> Figure:
    """Draw by how much each prompt's score has changed: a histogram with 0 as the edge of a bar."""
    change = np.array([result.policy - result.reference for result in results])
    largest = float(np.abs(change).max()) or 1.0
    half = BINS // 2
    counts, edges = np.histogram(change, bins=np.linspace(-largest, largest, 2 * half + 1))
    values = [
        {"low": float(low), "high": float(high), "prompts": int(count), "side": "loss" if index < half else "gain"}
        for index, (count, low, high) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    ]
    x = field("low", title=f"change of the score by {judge}", bin={"binned": True}, axis={"tickCount": 8})
    y = field("prompts", title="prompts", scale={"zero": True})
    shown = tooltip(("low", "from", ".3"), ("high", "to", ".3"), ("prompts", "prompts", "d"))
    bars = [
        {
            "transform": [{"filter": f"datum.side === '{side}'"}],
            "mark": {"type": "bar", "style": side, "binSpacing": 1},
            "encoding": {"x": x, "x2": {"field": "high"}, "y": y, "tooltip": shown},
        }
        for side in ("loss", "gain")
    ]
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return Figure(
        f"changes-{judge}",
        f"Change of each prompt by {judge}",
        layered(values, [*bars, chance("x", 0)]),
        "Each prompt counts once. Prompts right of 0 have gained; a tail on the left is what got worse.",
        f"Histogram of changes by {judge}: {gained} prompts gained, {lost} lost.",
    )


def length(pairs: Sequence[Pair], judge: str, effect: LengthEffect) -> Figure:
    """Draw each response's score over its length, with the mean score at each length."""
    scored = [pair for pair in pairs if pair.change(judge) is not None]
    kept = scored if 2 * len(scored) <= MOST_DOTS else Random(0).sample(scored, MOST_DOTS // 2)
    values = [
        {"length": length, "score": score, "side": side}
        for pair in kept
        for side, length, score in (
            ("policy", pair.policy_length, pair.policy_scores[judge]),
            ("reference", pair.reference_length, pair.reference_scores[judge]),
        )
    ]
    means = [{"side": side, "length": at, "score": mean, "count": count} for side, at, mean, count in effect.curve]
    colour = {"field": "side", "type": "nominal", "scale": _SIDES}
    shape = {**colour, "scale": {**_SIDES, "range": ["circle", "square"]}}
    place = {"x": field("length", title="length of the response"), "y": field("score", title=f"score by {judge}")}
    thinned = "" if kept is scored else f" The dots are {2 * len(kept):,} of {2 * len(scored):,} responses, by lot."
    return Figure(
        f"length-{judge}",
        f"Length and score by {judge}",
        layered(
            values,
            [
                {
                    "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.35},
                    "encoding": {
                        **place,
                        "color": colour,
                        "shape": shape,
                        "tooltip": tooltip(("side", "side"), ("length", "length", ".0f"), ("score", "score", ".3")),
                    },
                },
                {
                    "data": {"values": means},
                    "mark": {"type": "line", "strokeWidth": 2.5},
                    "encoding": {
                        **place,
                        "color": colour,
                        "tooltip": tooltip(
                            ("side", "side"), ("length", "mean length", ".1f"), ("score", "mean score", ".3"),
                            ("count", "responses", "d"),
                        ),
                    },
                },
            ],
        ),
        "Lines are mean scores at each length. Where the lines lie apart at equal length, the gain is not only length."
        + thinned,
        f"Scores by {judge} over response length, policy and reference.",
    )  # fmt: skip


def groups(heading: str, found: Sequence[Group], judge: str) -> Figure:
    """Draw the win rate of each group of prompts."""
    rows = [
        {
            "name": f"{one.name} ({one.prompts})",
            "rate": one.win_rate,
            "low": (one.interval or (one.win_rate, one.win_rate))[0],
            "high": (one.interval or (one.win_rate, one.win_rate))[1],
            "prompts": one.prompts,
        }
        for one in found
    ]
    y = field("name", "nominal", None, sort=None, axis={"title": None, "grid": False, "ticks": False})
    x = field("rate", title=f"win rate by {judge}", scale={"domain": [0, 1]}, axis={"format": ".0%", "tickCount": 10})
    shown = tooltip(("name", "group"), ("rate", "win rate", ".1%"), ("low", "from", ".1%"), ("high", "to", ".1%"))
    return Figure(
        f"groups-{heading.split()[0]}",
        f"Win rate by {heading}",
        layered(
            rows,
            [
                chance("x", 0.5),
                {
                    "mark": {"type": "rule", "style": "policy", "strokeWidth": 3, "opacity": 0.55},
                    "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "tooltip": shown},
                },
                {
                    "mark": {"type": "point", "style": "policy", "filled": True, "size": 90},
                    "encoding": {"x": x, "y": y, "tooltip": shown},
                },
            ],
            height=_ROW * len(rows) + 10,
        ),
        "Each line is a 95% interval over the prompts of the group; the number of prompts stands in brackets.",
        f"Win rate by {heading}: {_listed(rows)}.",
        wide=True,
    )
