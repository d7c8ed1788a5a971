"""Where a report is written, and what is never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_run import make_run

from rlhfctl.errors import RlhfctlError
from rlhfctl.report.write import report, report_at_end


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one")


def test_a_page_of_one_run_is_written_anew_into_its_folder(run: Path) -> None:
    assert report([run]) == ("", [f"wrote {run / 'report.html'}"])
    (run / "report.html").write_text("old", encoding="utf-8")
    assert report_at_end(run) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_is_in_no_stages_fingerprint(run: Path) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    report_at_end(run)
    assert {file: file.read_bytes() for file in before} == before


def test_equal_runs_give_equal_pages(run: Path) -> None:
    first = report_at_end(run).read_bytes()
    assert report_at_end(run).read_bytes() == first


def test_other_formats_are_printed_or_written(run: Path, tmp_path: Path) -> None:
    text, said = report([run], form="md")
    assert text.startswith("# one\n") and said == []
    assert json.loads(report([run], form="json")[0])["title"] == "one"
    assert report([run], form="json", out=tmp_path / "one.json") == ("", [f"wrote {tmp_path / 'one.json'}"])
    assert json.loads((tmp_path / "one.json").read_text())["title"] == "one"


def test_a_file_that_is_there_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine", encoding="utf-8")
    with pytest.raises(RlhfctlError, match="not overwritten"):
        report([run], out=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "mine"


def test_a_page_of_several_runs_needs_a_place(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "two")
    with pytest.raises(RlhfctlError, match="needs a place") as error:
        report([run, other])
    assert error.value.fix == "name a file: --out runs.html"
    report([run, other], out=tmp_path / "runs.html")
    assert "one and two" in (tmp_path / "runs.html").read_text(encoding="utf-8")
    assert report([run, other], form="md")[0].startswith("# one and two\n")
