"""A measurement in a process of its own: its result, its threads, and one message where it fails."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from rlhfctl.errors import EngineError
from rlhfctl.tools.bench.process import run_module

WORKER = """
import json, os, sys
words, out = sys.argv[1:-1], sys.argv[-1]
if words == ["fail"]:
    sys.exit("out of luck")
open(out, "w").write(json.dumps({"words": words, "threads": os.environ.get("OMP_NUM_THREADS")}))
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    return "some_worker"


def test_the_result_is_what_the_process_writes(worker: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert run_module(worker, ["a", "b"], out, where="w", fix="f") == {"words": ["a", "b"], "threads": "7"}
    assert run_module(worker, [], out, where="w", fix="f", threads=3)["threads"] == "3"


def test_several_processes_find_each_other_and_the_first_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    code = f"""
import json, os, pathlib, sys
mine = {{name: os.environ[name] for name in {names}}}
pathlib.Path(sys.argv[-1] + mine["RANK"]).write_text(json.dumps(mine))
if mine["RANK"] == "0":
    pathlib.Path(sys.argv[-1]).write_text(json.dumps(mine))
"""
    (tmp_path / "a_group.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out.json"
    first = run_module("a_group", [], out, where="w", fix="f", threads=2, processes=3)
    others = [json.loads(Path(f"{out}{rank}").read_text()) for rank in range(3)]
    assert first == others[0] and [one["RANK"] for one in others] == ["0", "1", "2"]
    assert {one["MASTER_PORT"] for one in others} == {first["MASTER_PORT"]} and first["WORLD_SIZE"] == "3"
    assert first["OMP_NUM_THREADS"] == "2"


def test_one_process_that_fails_or_is_late_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, sys, time
print("out of luck" if os.environ["RANK"] == "1" else "waiting", flush=True)
sys.exit(3) if os.environ["RANK"] == sys.argv[1] else time.sleep(60)
"""
    (tmp_path / "unlucky.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"code 3:\nout of luck"):
        run_module("unlucky", ["1"], tmp_path / "out.json", where="w", fix="f", processes=2)
    with pytest.raises(subprocess.TimeoutExpired):
        run_module("unlucky", ["none"], tmp_path / "out.json", where="w", fix="f", processes=2, timeout=0.2)
    assert time.monotonic() - began < 30


def test_a_failure_is_one_message(worker: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"code 1:\nout of luck") as raised:
        run_module(worker, ["fail"], tmp_path / "out.json", where="bench: here", fix="do this")
    assert (raised.value.where, raised.value.fix) == ("bench: here", "do this")
