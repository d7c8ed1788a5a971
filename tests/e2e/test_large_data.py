"""A million prompts and 200,000 preference pairs: `data`, `plan` and the start of each stage in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfctl.tools.bench.rows_worker import MOST_PAIRS, plant_rows

MOST_BYTES = 2e9  # of the whole process, with its libraries and a model of next to no weights
RECIPE = """
name: large
model:
  init: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 512, max_position_embeddings: 256}
data:
  demonstrations: {source: demonstrations.jsonl}
  preferences: {source: preferences.jsonl, heldout: 0.01}
  prompts: {source: prompts.jsonl, eval: 16, test: 16}
sft: {trainer: {max_steps: 1}}
reward: {lora: {r: 4}, trainer: {max_steps: 1, eval_strategy: "no"}}
ppo: {total_episodes: 8, per_device_train_batch_size: 8, response_length: 8}
"""
PROGRAM = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "rlhfctl", *sys.argv[1:]])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print("used", used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)
sys.exit(done.returncode)
"""


def used(folder: Path, *arguments: str) -> tuple[float, float]:
    """Run a command in its own process; return its highest memory in bytes, and the processor's seconds."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()
    return float(words[1]), float(words[2])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
def test_a_million_rows_fit_into_two_gigabytes_and_cost_time_in_proportion(tmp_path: Path) -> None:
    seconds = {}
    for count in (100_000, 10 * 100_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        plant_rows(folder, count)
        (folder / "large.yaml").write_text(RECIPE, encoding="utf-8")
        for command in ("data", "plan", "run"):
            memory, seconds[command, count] = used(folder, command, "large.yaml")
            assert memory < MOST_BYTES, (command, count)
    assert sum(1 for _ in (tmp_path / "1000000" / "preferences.jsonl").open()) == MOST_PAIRS
    for command in ("data", "plan", "run"):
        assert seconds[command, 1_000_000] < 12 * seconds[command, 100_000], command
