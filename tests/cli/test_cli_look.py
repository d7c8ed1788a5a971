"""`show`, `runs`, `rank`, `watch`, `report`, `score` as commands: JSON for scripts, no file overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.errors import RlhfctlError
from rlhfctl.tools import score


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a run folder without complete stages; the current folder is its grandparent."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "mine"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(TINY, encoding="utf-8")
    (folder / "events.jsonl").touch()
    return folder


def test_show_and_runs_print_json_for_scripts(run: Path) -> None:
    shown = json.loads(CliRunner().invoke(app, ["show", str(run), "--json"]).output)
    assert shown["name"] == "tiny" and shown["stages"]["sft"] == {"state": "not started", "manifest": None}
    (listed,) = json.loads(CliRunner().invoke(app, ["runs", "--json"]).output)
    assert (listed["name"], listed["state"]) == ("mine", "unfinished")


def test_no_runs_yet_is_an_empty_list_and_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(CliRunner().invoke(app, ["runs", "--json"]).output) == []
    assert "start one: rlhfctl run quickstart" in CliRunner().invoke(app, ["runs"]).output


def test_report_writes_a_page_and_prints_other_formats(run: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.output == f"wrote {run / 'report.html'}\n" and (run / "report.html").is_file()
    printed = CliRunner().invoke(app, ["report", str(run), "--format", "json"])
    assert json.loads(printed.stdout)["runs"][0]["name"] == "tiny"
    written = CliRunner().invoke(app, ["report", str(run), "--format", "md", "--out", "report.md"])
    assert written.output == "wrote report.md\n"
    assert Path("report.md").read_text(encoding="utf-8").startswith("# tiny\n")
    again = CliRunner().invoke(app, ["report", str(run), "--out", "report.md"])
    assert isinstance(again.exception, RlhfctlError) and "not overwritten" in str(again.exception)


def test_report_writes_pictures_in_place_of_the_page(run: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run), "--png", "slides"])
    assert result.output == "wrote 0 pictures in slides\n"  # a run that has not begun has no figure
    assert not (run / "report.html").exists()


def test_rank_prints_a_table_or_json_also_of_runs_of_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old", "copy"):
        shutil.copytree(ROOT / "tests" / "e2e" / "old_run" / "complete", name)
    table = CliRunner().invoke(app, ["rank", "old", "copy"])
    assert table.exit_code == 0 and "by gold, on 8 prompts" in table.output
    found = json.loads(CliRunner().invoke(app, ["rank", "old", "copy", "--judge", "reward_model", "--json"]).output)
    assert found["judge"] == "reward_model" and len(found["ranking"]) == 3
    refused = CliRunner().invoke(app, ["rank", "old"])
    assert isinstance(refused.exception, RlhfctlError)


def test_score_refuses_an_existing_file_before_it_scores(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing must be scored")

    monkeypatch.setattr(score, "score", scored)
    result = CliRunner().invoke(app, ["score", str(run), "rows.jsonl", "--out", str(run / "recipe.yaml")])
    assert isinstance(result.exception, RlhfctlError) and "already exists" in str(result.exception)
    assert (run / "recipe.yaml").read_text(encoding="utf-8") == TINY
