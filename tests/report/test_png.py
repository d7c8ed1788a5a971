"""Figures as pictures: real PNG files of the right size, and a clear error without the extra."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_run import make_run
from schema import faults

from rlhfctl.errors import RlhfctlError
from rlhfctl.report.content import Page
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.png import main_figures, picture_spec, write_pictures
from rlhfctl.report.sections import page_of


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(gather(make_run(tmp_path_factory.mktemp("png") / "one")))


def size_of(file: Path) -> tuple[int, int]:
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_figures_become_pictures(page: Page, tmp_path: Path) -> None:
    few = replace(
        page, sections=[section for section in page.sections if section.name in ("win-rates", "optimization")]
    )
    files = write_pictures(few, tmp_path / "slides")
    assert [file.name for file in files] == ["win-rates.png", "over-optimization-ppo.png", "reward-kl.png"]
    for file in files:
        width, height = size_of(file)
        assert width > 1900 and height > 300  # 960 wide, twice as many pixels
    with pytest.raises(RlhfctlError, match="already exists") as error:
        write_pictures(few, tmp_path / "slides")
    assert error.value.fix == "name a new folder with --png"


def test_the_figures_of_closed_parts_are_left_out(page: Page) -> None:
    names = [figure.name for figure in main_figures(page)]
    assert "ppo-score" in names and "ppo-grad_norm" not in names
    assert "ppo-grad_norm" in [figure.name for figure in page.figures()]


def test_a_picture_has_a_title_and_a_width(page: Page) -> None:
    for figure in main_figures(page):
        spec = picture_spec(figure)
        assert spec["width"] in (640, 960) and spec["title"] == figure.title and faults(spec) == []


def test_without_the_extra_the_error_names_it(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(RlhfctlError, match="vl-convert-python") as error:
        write_pictures(page, tmp_path / "slides")
    assert "rlhfctl[png]" in (error.value.fix or "") and not (tmp_path / "slides").exists()
