"""Write the main figures as pictures for slides, with vl-convert (no browser, no network).

Writes one PNG per figure. Needs the extra `png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.report.content import Figures as Row
from rlhfctl.report.content import Fold, Page, Part
from rlhfctl.report.figures.spec import PICTURE, Figure, config

WIDTH, WIDE, SCALE = 640, 960, 2.0
_TEXT = 1.25  # larger than on the page: slides are read from afar


def write_pictures(page: Page, folder: Path) -> list[Path]:
    """Write the figures that the page shows open; return their paths. RlhfctlError without the extra."""
    convert = _converter()
    written = []
    for figure in main_figures(page):
        file = folder / f"{figure.name}.png"
        data = convert.vegalite_to_png(picture_spec(figure), scale=SCALE, config=config(PICTURE, scale=_TEXT))
        fs.write_new(file, data, fix="name a new folder with --png")
        written.append(file)
    return written


def main_figures(page: Page) -> list[Figure]:
    """List the figures that stand open on the page: those in closed parts are for the curious."""
    return [figure for section in page.sections for part in section.parts for figure in _open(part)]


def _open(part: Part) -> list[Figure]:
    return list(part.figures) if isinstance(part, Row) and not isinstance(part, Fold) else []


def picture_spec(figure: Figure) -> dict[str, Any]:
    """Return a figure's specification with a fixed width, its title and white paper."""
    width = WIDE if figure.wide else WIDTH
    height = figure.spec["height"] * (WIDE / WIDTH if figure.wide else 1.4)
    return {
        **figure.drawn(),
        "width": width,
        "height": round(height),
        "title": figure.title,
        "background": "white",
        "padding": 20,
    }


def _converter() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise RlhfctlError(
            "--png needs the package vl-convert-python", fix="pip install 'rlhfctl[png]' (or vl-convert-python)"
        ) from error
    return vl_convert
