"""The report as JSON: strict, with the numbers of the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_run import make_run, make_seeds

from rlhfctl.report.as_json import FORMAT, json_of
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.sections import page_of
from rlhfctl.report.several import page_of_several


def refuse(constant: str) -> None:
    raise AssertionError(constant)


def test_it_has_the_numbers_of_the_page(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path / "one"))
    found = json.loads(json_of(page_of(run), [run]), parse_constant=refuse)
    assert found["format"] == FORMAT and found["numbers"][0]["label"] == "Win rate"
    (one,) = found["runs"]
    compare = json.loads((tmp_path / "one" / "compare" / "compare.json").read_text())
    assert one["comparison"]["judges"]["gold"]["win_rate"] == compare["judges"]["gold"]["win_rate"]
    assert one["comparison"]["verdict"] == compare["verdict"] and one["finished"] is True
    assert [stage["name"] for stage in one["stages"]] == ["sft", "reward", "ppo", "compare"]
    assert one["stages"][2]["cost"]["tokens"] == pytest.approx(64 * sum(20 + 4 * step / 40 for step in range(1, 41)))
    assert one["optimization"][0]["sentence"].startswith("PPO went too far")
    assert one["optimization"][0]["recommended"] == 4
    assert one["card"]["accuracy"]["value"] == 0.74 and one["alarms"][0]["stage"] == "ppo"


def test_several_runs_and_unfinished_ones_are_strict_json_too(tmp_path: Path) -> None:
    runs = [gather(make_run(tmp_path / "half", finished=False)), gather(make_seeds(tmp_path / "seeds"))]
    found = json.loads(json_of(page_of_several(runs), runs), parse_constant=refuse)
    assert [run["comparison"] and run["comparison"]["verdict"] for run in found["runs"]] == [None, "better"]
    assert [seed["seed"] for seed in found["runs"][1]["seeds"]] == ["seed 0", "seed 1", "seed 2"]
