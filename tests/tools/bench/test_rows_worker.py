"""Rows to measure: as many as asked for, the same each time, and read and encoded whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhfctl.tools.bench.process import run_module
from rlhfctl.tools.bench.rows_worker import MOST_PAIRS, main, plant_rows
from rlhfctl.tools.bench.scale import MOST_BYTES
from rlhfctl.tools.bench.workload import MB


def test_planted_rows_are_counted_and_the_same_each_time(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plant_rows(tmp_path / name, 150)
        written.append({file.name: file.read_text(encoding="utf-8") for file in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    lines = {name: text.count("\n") for name, text in written[0].items()}
    assert lines == {"prompts.jsonl": 150, "preferences.jsonl": 30, "demonstrations.jsonl": 200}
    assert MOST_PAIRS == 200_000


def test_all_prompts_but_those_kept_aside_are_encoded(tmp_path: Path) -> None:
    plant_rows(tmp_path, 120)
    main(str(tmp_path), str(tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["rows"] == 120 - 16 - 16
    assert set(found["phases"]) == {"read", "encode"}
    assert all(one["processor_s"] > 0 and one["seconds"] > 0 for one in found["phases"].values())
    assert found["peak_rss_mb"] > 0 < found["baseline_rss_mb"]


@pytest.mark.ci
def test_a_hundred_thousand_rows_cost_little_memory_each_and_time_in_proportion(tmp_path: Path) -> None:
    memory, seconds = {}, {}
    for count in (40_000, 100_000):
        plant_rows(tmp_path, count)
        found = run_module(
            "rlhfctl.tools.bench.rows_worker", [str(tmp_path)], tmp_path / "out.json", where="", fix="", threads=1
        )
        memory[count] = found["peak_rss_mb"] * MB
        seconds[count] = sum(one["processor_s"] for one in found["phases"].values())
    assert (memory[100_000] - memory[40_000]) / 60_000 < MOST_BYTES
    assert seconds[100_000] / seconds[40_000] < 2.5 * 1.4
