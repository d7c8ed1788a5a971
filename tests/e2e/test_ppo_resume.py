"""PPO killed -9 in the middle: the same command resumes from the last checkpoint and ends bit for bit the same.

The short form of tests/campaigns/ppo_kills.py, which kills at random moments.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, run_cli

from rlhfctl import fs

TIMED = ("rollout_s", "score_s", "update_s", "episodes_per_s")
UPDATES, EVERY = 6, 2
LONGER = ("--until", "ppo", "--set", f"ppo.total_episodes={16 * UPDATES}", "--set", f"ppo.checkpoint_steps={EVERY}",
          "--set", "ppo.trace_every=1", "--set", "ppo.use=best")  # fmt: skip


def ppo_events(run: Path) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [event for event in map(json.loads, lines) if event["stage"] == "ppo"]


def metrics(run: Path) -> dict[tuple[str, int], dict[str, float]]:
    """The last values at each step, durations apart."""
    return {
        (event["split"], event["step"]): {name: v for name, v in event["values"].items() if name not in TIMED}
        for event in ppo_events(run)
        if event["event"] == "metrics"
    }


def hashes(run: Path) -> dict[str, str]:
    found = [*(run / "ppo").rglob("*.safetensors"), *(run / "ppo" / "traces").glob("*.jsonl")]
    return {str(path.relative_to(run)): fs.hash_file(path) for path in found}


def kill_after_update(arguments: list[str], run: Path, update: int) -> None:
    """SIGKILL as soon as the metrics of `update` are out."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while ("train", update) not in metrics(run):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_two_kills_change_nothing_and_each_start_says_where_it_goes_on_from(tiny_run: Path, tmp_path: Path) -> None:
    recipe, undisturbed, killed = tmp_path / "tiny.yaml", tmp_path / "undisturbed", tmp_path / "killed"
    recipe.write_text(TINY, encoding="utf-8")
    for run in (undisturbed, killed):  # as they are after `--until reward`
        shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("ppo", "compare", "events.jsonl"))
        (run / "events.jsonl").touch()
    whole = run_cli("run", recipe, "--run-dir", undisturbed, *LONGER)
    assert whole.returncode == 0, whole.stderr
    assert "resumed_from" not in whole.stdout

    arguments = [sys.executable, "-m", "rlhfctl", "run", str(recipe), "--run-dir", str(killed), *LONGER]
    for update in (1, UPDATES - 1):
        kill_after_update(arguments, killed, update)
    assert not (killed / "ppo" / "manifest.json").exists()
    second = run_cli("run", recipe, "--run-dir", killed, *LONGER)
    assert second.returncode == 0, second.stderr

    starts = [event["resumed_from"] for event in ppo_events(killed) if event["event"] == "started"]
    assert starts[0] is None and starts[1] in (0, EVERY)  # the kill may come after one more update
    assert starts[2] in (UPDATES - EVERY, UPDATES)
    assert re.search(rf"^\[ppo\].* resumed_from={starts[2]}\b", second.stdout, re.MULTILINE), second.stdout
    steps = [event["step"] for event in ppo_events(killed) if event["event"] == "metrics" and event["split"] == "train"]
    assert steps.count(1) <= 2 and steps[0] == 1 and steps[-1] == UPDATES

    assert hashes(killed) == hashes(undisturbed)
    assert len(hashes(killed)) == 2 + UPDATES  # adapter, critic and a trace an update
    assert metrics(killed) == metrics(undisturbed)
    assert {step for split, step in metrics(killed) if split == "train"} == set(range(1, UPDATES + 1))
