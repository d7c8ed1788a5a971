"""`bench scale`: a planted quadratic is named, memory per row is judged where rows are streamed, a real run works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from rlhfctl.errors import EngineError
from rlhfctl.tools.bench import scale
from rlhfctl.tools.bench.scale import AXES, Point, judged


def points(seconds: dict[int, float], memory: dict[int, float] | None = None, needed: float = 0.0) -> list[Point]:
    """Points of two parts, of which `read` costs `seconds` at each size; `encode` is in proportion."""
    return [
        Point(size, f"{size}", {}, {"read": cost, "encode": size / 1e5}, (memory or {}).get(size, 10.0), needed * size)
        for size, cost in seconds.items()
    ]


def test_a_planted_quadratic_is_named_and_nothing_else() -> None:
    found = judged("rows", "rows", points({n: (n / 1_000) ** 2 for n in (1_000, 10_000, 100_000)}))
    (flag,) = found.flags
    assert flag == "rows: read grows like rows^2.00 (^2.00 at the end), and must grow like ^1.00"
    assert judged("rows", "rows", points({n: n / 1_000 for n in (1_000, 10_000, 100_000)})).flags == []


def test_memory_of_rows_is_judged_where_all_of_them_are_streamed() -> None:
    growing = {1_000: 10.0, 30_000: 20.0, 60_000: 20.0 + 30_000 * 600 / 1e6}
    found = judged("rows", "rows", points(dict.fromkeys(growing, 1.0), growing))
    assert found.per_row == pytest.approx(600)
    assert found.flags == ["rows: one more row costs 600 bytes of memory, though rows are streamed"]
    small = {1_000: 10.0, 10_000: 40.0}
    assert judged("rows", "rows", points(dict.fromkeys(small, 1.0), small)).per_row is None


def test_an_update_must_grow_as_its_arithmetic_does() -> None:
    sizes = (8, 16, 32)
    memory = {size: float(size) for size in sizes}
    quadratic = [
        Point(size, "", {}, {"update": float(size**2)}, memory[size], needed=float(size**power))
        for power in (1, 2)
        for size in sizes
    ]
    assert [flag.split(":")[0] for flag in judged("batch", "episodes", quadratic[:3]).flags] == ["batch"]
    assert judged("batch", "episodes", quadratic[3:]).flags == []
    memory_too = [Point(size, "", {}, {"update": 1.0}, float(size**2), needed=1.0) for size in sizes]
    assert "memory grows like episodes^2.00" in judged("batch", "episodes", memory_too).flags[0]


def test_each_axis_changes_its_own_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, int, int]] = []

    def update(layers: int, batch: int, length: int, threads: int, size: str) -> Point:
        asked.append((size, layers, batch, length))
        one = {"layers": layers, "batch": batch, "length": length}[size]
        return Point(one, "", {"update": 1.0}, {"update": float(one)}, float(one), float(one))

    monkeypatch.setattr(scale, "_update", update)
    report = scale.measured(["model", "batch", "length"], points=2)
    assert asked == [
        ("layers", 2, 8, 32), ("layers", 4, 8, 32),
        ("batch", 2, 8, 32), ("batch", 2, 16, 32),
        ("length", 2, 8, 16), ("length", 2, 8, 32),
    ]  # fmt: skip
    assert list(report["axes"]) == ["model", "batch", "length"] and report["flags"] == []
    assert set(AXES) == {"model", "batch", "length", "rows"}


@pytest.mark.ci
def test_a_worker_that_fails_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "plant_rows", lambda folder, count: None)  # there are no files to read
    with pytest.raises(EngineError, match=r"bench scale: rows(.|\n)*the worker stopped with code 1"):
        scale.measured(["rows"], rows=[100, 200])


@pytest.mark.ci
def test_a_small_real_run_measures_rows_and_updates(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "scale.json"
    done = cli("bench", "scale", "--axes", "rows,batch", "--rows", "200,400", "--points", 2, "--json", file)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for axis, parts in (("rows", {"read", "encode"}), ("batch", {"update"})):
        found = report["axes"][axis]["points"]
        assert len(found) == 2 and found[1]["size"] == 2 * found[0]["size"]
        assert all(set(point["processor"]) == parts and min(point["processor"].values()) > 0 for point in found)
    assert "rows: 200 prompts, encode " in done.stdout and "batch: 16 episodes, update " in done.stdout
    assert "rows: grows like encode ^" in done.stdout


def test_wrong_options_are_refused(here: Cli) -> None:
    for options in (("--axes", "rows,depth"), ("--rows", "1000"), ("--rows", "10,1000"), ("--rows", "many,1000")):
        done = here("bench", "scale", *options)
        assert done.returncode == 2 and options[0] in done.stderr
