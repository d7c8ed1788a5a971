"""Trackers: metrics of each stage at growing steps, files inside the run, an early error for a missing library."""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli, run_here

from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Metrics, Note, RunStopped, StageFinished, StageStarted, VerdictReached
from rlhfctl.tools import trackers


def metrics(stage: str, step: int, split: str = "train", **values: float) -> Metrics:
    return Metrics(stage=stage, step=step, values=values, split=split)  # type: ignore[arg-type]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read tag -> [(step, value)] with TensorBoard's own reader."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = event_accumulator.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_a_stage_that_resumes_repeats_no_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = [StageStarted(stage="ppo"), *(metrics("ppo", step, score=float(step)) for step in range(1, 6))]
    again = [
        StageStarted(stage="ppo", resumed_from=3),
        *(metrics("ppo", step, score=10.0 + step) for step in (4, 5, 6)),
    ]
    for events in ([*first, RunStopped(stage="run", reason="killed")], again):
        with trackers.tracking(["tensorboard"], tmp_path, "name", lambda event: None) as tell:
            for event in events:
                tell(event)
    found = scalars(tmp_path / "tensorboard" / "ppo")["score"]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0), (5, 15.0), (6, 16.0)]


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with trackers.tracking(["tensorboard"], tmp_path, "name", lambda event: None) as tell:
        tell(StageStarted(stage="sft"))
        tell(metrics("sft", 1, loss=float("nan"), lr=0.5))
    assert scalars(tmp_path / "tensorboard" / "sft") == {"lr": [(1, 0.5)]}


@pytest.mark.ci
def test_tensorboards_files_stay_in_a_complete_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tiny.yaml").write_text(TINY + "report_to: [tensorboard]\n")
    result = run_here("run", "tiny.yaml", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = {stage: scalars(tmp_path / "run/tensorboard" / stage) for stage in ("sft", "reward", "ppo", "compare")}
    assert "final/steps" in found["sft"] and "final/heldout_accuracy" in found["reward"]
    assert {"score", "kl", "eval_score", "eval_kl"} <= found["ppo"].keys()
    assert {"win_rate", "control_win_rate"} <= found["compare"].keys()
    for stage in found.values():
        for tag, points in stage.items():
            steps = [step for step, _ in points]
            assert steps == sorted(set(steps)), tag


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Replace wandb and trackio by stand-ins that record their calls."""
    told: dict[str, list[Any]] = defaultdict(list)

    def init(**given: Any) -> Any:
        told["init"].append(given)
        return types.SimpleNamespace(
            log=lambda values: told["log"].append(values),
            define_metric=lambda *names, **more: told["define"].append(names),
            finish=lambda: told["finish"].append(1),
            summary={},
            url="https://example.org/mine",
            dir="files",
        )

    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.init = init  # type: ignore[attr-defined]
        module.Settings = dict  # type: ignore[attr-defined]
        module.log = lambda values, step=None: told["log"].append({**values, "step": step})  # type: ignore[attr-defined]
        module.finish = lambda: told["finish"].append(1)  # type: ignore[attr-defined]
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    return told


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_stage_is_a_run_of_one_project_and_is_closed(
    name: str, library: dict[str, list[Any]], tmp_path: Path
) -> None:
    heard: list[Any] = []
    with trackers.tracking([name], tmp_path, "mine", heard.append) as tell:
        for stage in ("sft", "ppo"):
            tell(StageStarted(stage=stage, settings={"lr": 1}))
            tell(metrics(stage, 1, loss=1.0))
            tell(metrics(stage, 0, "eval", eval_loss=2.0))
            tell(StageFinished(stage=stage, path="x", seconds=1.0))
        tell(StageStarted(stage="compare"))
        tell(VerdictReached(stage="compare", verdict="better", sentence="better: so"))
    assert [(one["project"], one["name"]) for one in library["init"]] == [
        ("rlhfctl", "mine-sft"), ("rlhfctl", "mine-ppo"), ("rlhfctl", "mine-compare"),
    ]  # fmt: skip
    assert len(library["finish"]) == 3
    place = "https://example.org/mine" if name == "wandb" else "trackio show --project rlhfctl"
    notes = [(event.stage, event.message) for event in heard if isinstance(event, Note)]
    assert notes == [(stage, f"{name}: {place}") for stage in ("sft", "ppo", "compare")]
    assert {"loss": 1.0, "step": 1} in library["log"] and {"eval_loss": 2.0, "step": 0} in library["log"]


def offline(run: Path) -> dict[str, list[dict[str, float]]]:
    """Read stage -> rows from wandb's offline files, in order: a log of protocol buffers in blocks."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[dict[str, float]]] = {}
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        data, at, whole, stage = file.read_bytes(), 7, b"", ""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):  # whole, or the last part
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                whole = b""
                if record.WhichOneof("record_type") == "run":
                    stage = record.run.display_name.removeprefix("tiny-")
                    found.setdefault(stage, [])
                elif record.WhichOneof("record_type") == "history":
                    items = record.history.item
                    found[stage].append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return found


def kept(database: Path) -> dict[str, list[dict[str, float]]]:
    """Read stage -> rows from trackio's database."""
    found: dict[str, list[dict[str, float]]] = {}
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by id").fetchall()
    for name, step, values in rows:
        found.setdefault(name.removeprefix("tiny-"), []).append(json.loads(values) | {"step": step})
    return found


@pytest.mark.ci
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_library_has_every_metric_of_every_stage_at_growing_steps(name: str, tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip(name)
    (tmp_path / "tiny.yaml").write_text(TINY + f"report_to: [{name}]\n")
    (tmp_path / "cache").write_text("a file: no folder can be made in it")
    env = {"WANDB_MODE": "offline", "XDG_CACHE_HOME": str(tmp_path / "cache"), "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = cli("run", "tiny.yaml", "--run-dir", "run", cwd=tmp_path, env=env)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert all(f"[{stage}] note {name}: " in done.stdout for stage in ("sft", "reward", "ppo", "compare"))
    # Output of the library, or of transformers about wandb's mode, would break the dashboard's picture.
    assert "please wait" not in done.stdout and "WANDB" not in done.stdout
    found = offline(tmp_path / "run") if name == "wandb" else kept(tmp_path / "trackio" / "rlhfctl.db")
    assert found.keys() == {"sft", "reward", "ppo", "compare"}
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    for stage, rows in found.items():
        steps = [row["step"] for row in rows]
        assert steps == sorted(steps) and rows
        for event in events:
            if event["event"] == "metrics" and event["stage"] == stage:
                of_step = {key: value for row in rows if row["step"] == event["step"] for key, value in row.items()}
                assert {key: of_step.get(key) for key in event["values"]} == pytest.approx(event["values"])
    assert found["sft"][-1]["final/steps"] == found["sft"][-1]["step"] == 6


def test_a_missing_library_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    (tmp_path / "tiny.yaml").write_text(TINY + "report_to: [wandb]\n")
    result = run_here("run", "tiny.yaml", cwd=tmp_path)
    assert result.returncode == 1
    assert "report_to: wandb is not installed" in result.stderr and "pip install 'rlhfctl[wandb]'" in result.stderr
    with pytest.raises(RlhfctlError, match="tensorboard is not installed"):
        trackers.require(["tensorboard"])


def test_an_unknown_tracker_is_no_valid_recipe(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY + "report_to: [wndb]\n")
    result = run_here("validate", "tiny.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "report_to" in result.stderr and "wandb" in result.stderr
