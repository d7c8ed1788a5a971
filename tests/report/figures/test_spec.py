"""The parts that all figures share: the schema, colours, marks with labels, room above curves."""

from __future__ import annotations

import re

import pytest
from schema import faults, rows_of

from rlhfctl.report.figures.spec import (
    CATEGORIES,
    PAGE,
    PICTURE,
    Figure,
    chance,
    config,
    field,
    headroom,
    layered,
    marked,
    series_colour,
    series_shape,
)

POINTS = {"mark": "point", "encoding": {"x": field("a"), "y": field("b")}}


def test_the_schema_tells_right_from_wrong() -> None:
    spec = Figure("n", "t", layered([{"a": 1, "b": 2}], [POINTS, chance("x", 0.5)])).drawn()
    assert faults(spec) == []
    assert faults({**spec, "layer": [{"mark": "no such mark"}]}) != []


@pytest.mark.parametrize("colours", [PAGE, PICTURE], ids=["page", "picture"])
def test_the_configuration_is_valid(colours: dict[str, str]) -> None:
    spec = Figure("n", "t", layered([{"a": 1, "b": 2}], [POINTS])).drawn()
    assert faults({**spec, "config": config(colours)}) == []
    assert len(config(colours)["range"]["category"]) == CATEGORIES


def test_every_style_that_figures_name_has_a_colour_in_both() -> None:
    assert PAGE.keys() == PICTURE.keys()
    assert config(PAGE)["style"].keys() == config(PICTURE)["style"].keys()


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_of_pictures_stand_out_from_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    marks = {name: colour for name, colour in PICTURE.items() if name not in ("paper", "grid")}
    assert {name: colour for name, colour in marks.items() if contrast(colour, "#ffffff") < 4.5} == {}


def test_a_line_of_chance_is_drawn_once() -> None:
    assert chance("y", 0.5)["data"] == {"values": [{}]}


def test_labels_right_of_the_middle_stand_left_of_their_line() -> None:
    line, label = marked([(1.0, "early"), (9.0, "late")], field("root"), 10.0)
    assert [(row["at"], row["label"], row["late"]) for row in rows_of(line)] == [
        (1.0, "early", False),
        (9.0, "late", True),
    ]
    assert label["encoding"]["x"]["field"] == "at" and label["encoding"]["text"]["field"] == "label"


def test_headroom_is_above_the_highest_value() -> None:
    assert headroom([0.0, 1.0], 0.5)["domain"] == [0.0, 1.5]
    assert headroom([2.0, 2.0], 0.5)["domain"] == [2.0, 2.5]


def test_a_legend_stands_only_where_there_are_several() -> None:
    assert series_colour(["a"])["legend"] is None and "legend" not in series_colour(["a", "b"])
    shape = series_shape([str(n) for n in range(8)])
    assert len(shape["scale"]["range"]) == 8 and shape["scale"]["range"][0] == shape["scale"]["range"][6]


def test_page_colours_are_variables_that_the_style_has() -> None:
    from pathlib import Path

    import rlhfctl.report.page as page

    style = (Path(page.__file__).parent / "page" / "style.css").read_text(encoding="utf-8")
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in style.split("prefers-color-scheme: dark", 1))
    used = {value[4:-1] for value in PAGE.values()}
    assert used <= light and used <= dark
