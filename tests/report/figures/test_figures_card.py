"""Figures of the reward model's card: all of a whole card, and none of what a card lacks."""

from __future__ import annotations

import math

from made_run import card_json
from schema import faults, rows_of

from rlhfctl.report.figures.card import card_figures
from rlhfctl.report.figures.spec import Figure


def figures() -> dict[str, Figure]:
    return {figure.name: figure for figure in card_figures(card_json())}


def test_a_whole_card_has_four_figures() -> None:
    assert list(figures()) == ["best-of-n", "reliability", "margins", "probes"]
    assert [fault for figure in figures().values() for fault in faults(figure.drawn())] == []


def test_best_of_n_is_drawn_over_the_root_of_kl_with_its_peak() -> None:
    spec = figures()["best-of-n"].spec
    rows = [row for row in rows_of(spec) if row["series"] == "the reward model itself"]
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert rows[1]["root"] == math.sqrt(math.log(2) - 0.5)
    assert {row["series"] for row in rows_of(spec)} == {
        "the reward model itself", "held-out reward model", "disagreement of the two reward models",
    }  # fmt: skip
    labels = [
        row["label"] for layer in spec["layer"] for row in layer.get("data", {}).get("values", ()) if "label" in row
    ]
    assert set(labels) == {"peak: best of 64, KL 3.17"}


def test_margins_are_split_at_zero() -> None:
    card = card_json() | {"margins": {"values": [-1.0, 0.5, 1.0, 2.0]}}
    (figure,) = (one for one in card_figures(card) if one.name == "margins")
    counts = {
        side: sum(row["pairs"] for row in rows_of(figure.spec) if row["side"] == side) for side in ("loss", "gain")
    }
    assert counts == {"loss": 1, "gain": 3} and "75%" in figure.alt


def test_probes_keep_their_order() -> None:
    assert [row["name"] for row in rows_of(figures()["probes"].spec)] == [
        "empty",
        "prompt repeated",
        "gibberish",
        "flattering",
    ]


def test_an_empty_bin_is_no_point() -> None:
    card = card_json()
    card["calibration"]["bins"][0]["n"] = 0
    (figure,) = (one for one in card_figures(card) if one.name == "reliability")
    assert len(rows_of(figure.spec)) == 4


def test_what_a_card_lacks_is_left_out() -> None:
    card = {"accuracy": {"value": 0.7}, "optimization": None, "calibration": None, "margins": {}, "probes": []}
    assert card_figures(card) == []
    part = card_json() | {
        "optimization": {"n": [1, 2], "kl": [0, 0.2], "proxy": {"mean": [0, 0.4]}, "heldout": None, "peak": None}
    }
    (figure,) = (one for one in card_figures(part) if one.name == "best-of-n")
    assert [row["low"] for row in rows_of(figure.spec)] == [0, 0.4] and faults(figure.drawn()) == []
