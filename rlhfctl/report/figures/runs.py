"""Draw several runs side by side: Pareto plots of a gain (a win rate, a reward) against KL. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Place:
    """One run in a plot of gain over KL: its KL (nats per response), its gain, and the gain's interval."""

    run: str
    kl: float
    gain: float
    interval: tuple[float, float] | None = None
    verdict: str = ""


def pareto(runs: Sequence[tuple[str, Run]]) -> Figure | None:
    """Draw each run's win rate over its KL, and the front of runs that none beats in both; None below two runs."""
    places = [
        Place(label, found.kl, found.main.win_rate, found.main.win_rate_ci, found.verdict)
        for label, run in runs
        if (found := run.comparison) is not None and found.kl is not None
    ]
    return gain_over_kl(
        "pareto", "Win rate against KL", "win rate", places, share=True,
        caption="Up and to the left is better: more prompts won for less distance from the reference.",
    )  # fmt: skip


def gain_over_kl(
    name: str,
    title: str,
    gain: str,
    places: Sequence[Place],
    *,
    share: bool = False,
    caption: str,
    limit: float | None = None,
) -> Figure | None:
    """Draw a gain of each run over its KL, and the front of runs that none beats in both; None below two runs.

    `share`: the gain is a share of prompts, and chance is a half. `limit`: a KL to mark.
    """
    if len(places) < 2:
        return None
    rows = [
        {
            "run": one.run,
            "kl": one.kl,
            "gain": one.gain,
            "low": (one.interval or (one.gain,) * 2)[0],
            "high": (one.interval or (one.gain,) * 2)[1],
            "series": one.run,
            "verdict": one.verdict,
        }
        for one in places
    ]
    front = [rows[index] for index in pareto_front([(one.kl, one.gain) for one in places])]
    names = [one.run for one in places]
    x = field("kl", title="KL from the reference, nats per response", scale={"zero": True})
    y = field("gain", title=gain, axis={"format": ".0%"} if share else {})
    colour, shape = series_colour(names), series_shape(names)
    form = ".1%" if share else ".3"
    judged = [("verdict", "verdict")] if any(one.verdict for one in places) else []
    shown = tooltip(
        ("run", "run"), *judged, ("gain", gain, form), ("low", "from", form), ("high", "to", form), ("kl", "KL", ".3")
    )
    marks = [chance("x", limit)] if limit is not None else []
    said = ", ".join(f"{one.run} {f'{one.gain:.0%}' if share else f'{one.gain:.3g}'} at {one.kl:.2g}" for one in places)
    return Figure(
        name,
        title,
        layered(
            rows,
            [
                *([chance("y", 0.5)] if share else []),
                *marks,
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
        f"{caption} No run beats those on the line in both."
        + (" The dashed upright line is the KL limit." if limit is not None else ""),
        f"{gain[:1].upper()}{gain[1:]} over KL: {said}.",
        wide=True,
    )
