"""Draw several runs side by side: the Pareto plot of win rate against KL, and the best of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rlhfctl.report.facts.records import Run
from rlhfctl.report.figures.spec import Figure, chance, field, layered, series_colour, series_shape, tooltip


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, gain) that no other point beats in both, by rising cost."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def pareto(runs: Sequence[tuple[str, Run]]) -> Figure | None:
    """Draw each run's win rate over its KL, and the front of runs that none beats in both; None below two runs."""
    rows = [
        {
            "run": label,
            "kl": found.kl,
            "rate": found.main.win_rate,
            "low": (found.main.win_rate_ci or (found.main.win_rate,) * 2)[0],
            "high": (found.main.win_rate_ci or (found.main.win_rate,) * 2)[1],
            "series": label,
            "verdict": found.verdict,
        }
        for label, run in runs
        if (found := run.comparison) is not None and found.kl is not None
    ]
    if len(rows) < 2:
        return None
    front = [rows[index] for index in pareto_front([(float(str(r["kl"])), float(str(r["rate"]))) for r in rows])]
    names = [str(row["run"]) for row in rows]
    x = field("kl", title="KL from the reference, nats per response", scale={"zero": True})
    y = field("rate", title="win rate", axis={"format": ".0%"})
    colour = series_colour(names)
    shape = series_shape(names)
    shown = tooltip(
        ("run", "run"), ("verdict", "verdict"), ("rate", "win rate", ".1%"), ("low", "from", ".1%"),
        ("high", "to", ".1%"), ("kl", "KL", ".3"),
    )  # fmt: skip
    return Figure(
        "pareto",
        "Win rate against KL",
        layered(
            rows,
            [
                chance("y", 0.5),
                {
                    "data": {"values": front},
                    "mark": {"type": "line", "style": "quiet", "interpolate": "step-after", "strokeWidth": 1},
                    "encoding": {"x": x, "y": y},
                },
                {
                    "mark": {"type": "rule", "strokeWidth": 2.5, "opacity": 0.5},
                    "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                    "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": shown},
                },
            ],
            height=300,
        ),
        "Up and to the left is better: more prompts won for less distance from the reference. No run beats those on "
        "the line in both.",
        "Win rate over KL: "
        + ", ".join(f"{r['run']} {float(str(r['rate'])):.0%} at {float(str(r['kl'])):.2g}" for r in rows)
        + ".",
        wide=True,
    )
