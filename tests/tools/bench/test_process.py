"""A measurement in a process of its own: its result, its threads, and one message where it fails."""

from __future__ import annotations

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


def test_a_failure_is_one_message(worker: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"code 1:\nout of luck") as raised:
        run_module(worker, ["fail"], tmp_path / "out.json", where="bench: here", fix="do this")
    assert (raised.value.where, raised.value.fix) == ("bench: here", "do this")
