"""The curves of `reproduce gao` and `rloo`: valid figures, from the reference to where all seeds reach."""

from __future__ import annotations

from typing import Any

import pytest
from made_reproduction import made_comparison, made_result
from schema import faults

from rlhfctl.report.figures.reproduction import algorithm_figures, reproduction_figures


def test_curves_are_valid_figures_from_the_reference_to_where_all_seeds_reach() -> None:
    result = made_result()
    result["seeds"][0]["best_of_n"]["9"]["distance"] = [0.5, 1.0, 1.5]
    figures = {figure.name: figure for figure in reproduction_figures(result)}
    assert list(figures) == ["best-of-n-gold", "best-of-n-proxy", "rl-gold", "rl-proxy"]
    assert [fault for figure in figures.values() for fault in faults(figure.drawn())] == []
    band, line, fitted = drawn(figures["best-of-n-gold"].spec, "9 pairs")
    assert band == line
    assert band[0] == {"d": 0.0, "score": 0.0, "low": 0.0, "high": 0.0, "series": "9 pairs"}
    assert band[-1]["d"] == 1.5
    assert fitted[-1]["score"] == pytest.approx(1.5 * (3.0 - 0.5 * 1.5))
    assert len(drawn(figures["rl-proxy"].spec, "9 pairs")) == 2  # no fit


def test_algorithms_have_a_line_each_without_bands_and_fits() -> None:
    gold, score = algorithm_figures(made_comparison())
    assert [fault for figure in (gold, score) for fault in faults(figure.drawn())] == []
    (line,) = drawn(gold.spec, "rloo-4")
    assert (line[0]["score"], line[-1]["score"]) == pytest.approx((0.0, 2.0))
    assert drawn(score.spec, "rloo-4")[0][-1]["score"] == pytest.approx(4.0)
    assert gold.name == "algorithms-gold"
    scale = gold.spec["layer"][-1]["encoding"]["strokeDash"]["scale"]  # the colours of the first six repeat
    dashed = [name for name, dash in zip(scale["domain"], scale["range"], strict=True) if dash != [1, 0]]
    assert dashed == ["dpo", "best of n"]


def drawn(spec: dict[str, Any], series: str) -> list[list[dict[str, Any]]]:
    """Rows of each layer that has its own, those of one series; a layer of one row without series is left out."""
    layers = [layer["data"]["values"] for layer in spec["layer"] if "data" in layer]
    return [found for rows in layers if (found := [row for row in rows if row.get("series") == series])]
