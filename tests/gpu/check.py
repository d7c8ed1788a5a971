"""The rows of check.sh: a tiny recipe through all stages on this device, and what its numbers must be.

Runs `rlhfctl` as a user would, in a temporary folder, and reads what the runs leave. Prints a table. Needs the packages
that the stages need, and nothing else; what cannot be checked here is skipped with its reason.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

RECIPE = """\
name: check
model:
  init: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 400, max_position_embeddings: 128}
lora: {r: 4, lora_alpha: 8}
data:
  demonstrations: {source: "builtin:reviews", rows: 96}
  preferences: {source: "builtin:reviews", rows: 64, heldout: 0.25}
  prompts: {source: "builtin:reviews", rows: 60, eval: 4, test: 8}
sft: {lora: null, trainer: {num_train_epochs: 1, learning_rate: 1e-2, per_device_train_batch_size: 16}}
reward: {trainer: {num_train_epochs: 1, learning_rate: 1e-2, per_device_train_batch_size: 8}}
ppo:
  total_episodes: 64
  per_device_train_batch_size: 16
  num_mini_batches: 2
  num_ppo_epochs: 2
  learning_rate: 1e-3
  response_length: 12
  missing_eos_penalty: 1.0
  checkpoint_steps: 1
compare: {samples_per_prompt: 2, judges: [gold, reward_model], bootstrap_samples: 200}
"""
FLOAT32_GAP, BFLOAT16_GAP = 1e-4, 0.5  # nats per token between sampling and update
SAME = 1e-3  # relative, between one update here and on the CPU
Result = tuple[bool | None, str]  # passed (None: skipped), and the number that decided


class Check:
    """The runs that the rows share, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "check.yaml").write_text(RECIPE, encoding="utf-8")
        self.on_gpu = torch.cuda.is_available()

    def rlhfctl(self, *arguments: str, cpu: bool = False) -> subprocess.CompletedProcess[str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
        command = [sys.executable, "-m", "rlhfctl", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **hidden}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise AssertionError(
                f"exit {done.returncode}: {(done.stderr or done.stdout).strip().splitlines()[-1][:160]}"
            )
        return done

    def run(self, name: str, *sets: str) -> Path:
        """A whole run under `name`."""
        if not (self.folder / name).is_dir():
            self.rlhfctl("run", "check.yaml", "--run-dir", name, *(part for one in sets for part in ("--set", one)))
        return self.folder / name

    def events(self, run: Path, stage: str) -> list[dict[str, Any]]:
        lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["stage"] == stage]

    def updates(self, run: Path) -> list[dict[str, float]]:
        """The metrics of each PPO update."""
        found = self.events(run, "ppo")
        return [event["values"] for event in found if event["event"] == "metrics" and event["split"] == "train"]


def whole_run(check: Check, dtype: str, largest_gap: float) -> Result:
    run = check.run(dtype, f"model.dtype={dtype}", *([] if dtype == "float32" else ["ppo.learning_rate=1e-2"]))
    gap = max((one["rollout_gap"] for one in check.updates(run) if "rollout_gap" in one), default=math.nan)
    verdict = json.loads((run / "compare" / "compare.json").read_text(encoding="utf-8"))["verdict"]
    return gap <= largest_gap, f"rollout gap {gap:.2g} nats per token, verdict {verdict}"


def hand_over(check: Check) -> Result:
    run = check.run("float32")
    gaps = [
        json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))["metrics"]["reload_gap"]
        for stage in ("sft", "reward")
    ]
    return max(gaps) <= 1e-4, f"largest gap after reloading {max(gaps):.2g}"


def step_zero(check: Check) -> Result:
    kl = abs(check.updates(check.run("float32"))[0]["kl"])
    return kl <= 1e-4, f"KL {kl:.2g} nats before the first update"


def one_update(check: Check) -> Result:
    """One update from the same base* and reward model, here and on the CPU."""
    run = check.run("float32")
    found = []
    for name, cpu in (("here", False), ("cpu", True)):
        models = ("--policy", str(run / "sft"), "--reward-model", str(run / "reward"), "--run-dir", name)
        check.rlhfctl("ppo", "check.yaml", *models, "--set", "ppo.total_episodes=16", cpu=cpu)
        found.append(check.updates(check.folder / name)[0])
    names = ("score", "kl", "policy_loss", "value_loss", "grad_norm")
    off = max(
        abs(found[0][name] - found[1][name]) / max(1e-2, abs(found[1][name])) for name in names if name in found[1]
    )
    return off <= SAME, f"largest relative difference {off:.2g} of {', '.join(names)}"


def resumed(check: Check) -> Result:
    """PPO killed after a checkpoint: the same command ends with the same policy."""
    run = check.run("float32")
    models = ["--policy", str(run / "sft"), "--reward-model", str(run / "reward"), "--run-dir", "killed"]
    command = [sys.executable, "-m", "rlhfctl", "ppo", "check.yaml", *models]
    process = subprocess.Popen(command, cwd=check.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(check.folder.glob("killed/ppo/work/checkpoint-1/complete.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    check.rlhfctl(*command[3:])
    scores = [[one["score"] for one in check.updates(check.folder / name)] for name in ("float32", "killed")]
    off = max(abs(a - b) for a, b in zip(scores[0][-3:], scores[1][-3:], strict=True))
    return off <= (1e-3 if check.on_gpu else 0.0), f"largest difference of a score {off:.2g}"


def few_bits(check: Check, bits: str) -> Result:
    if find_spec("bitsandbytes") is None:
        return None, "bitsandbytes is not installed"
    base = check.run("float32") / "sft" / "model"
    recipe = RECIPE.replace(RECIPE[RECIPE.index("model:") : RECIPE.index("lora:")], "").replace("lora: null, ", "")
    (check.folder / f"{bits}.yaml").write_text(f"{recipe}model: {{path: {base}, quantization: {bits}}}\n")
    check.rlhfctl("run", f"{bits}.yaml", "--run-dir", bits, "--until", "ppo", "--set", "ppo.total_episodes=16")
    kl = abs(check.updates(check.folder / bits)[0]["kl"])
    return kl <= 1e-3, f"KL {kl:.2g} nats before the first update"


ROWS: dict[str, tuple[Callable[[Check], Result], bool]] = {
    "all stages in float32": (lambda check: whole_run(check, "float32", FLOAT32_GAP), True),
    "hand-over": (hand_over, True),
    "KL at step 0": (step_zero, True),
    "one update beside the CPU's": (one_update, True),
    "resume after a kill": (resumed, False),
    "all stages in bfloat16": (lambda check: whole_run(check, "bfloat16", BFLOAT16_GAP), False),
    "8 bits": (lambda check: few_bits(check, "8bit"), False),
    "4 bits": (lambda check: few_bits(check, "4bit"), False),
}
"""What is checked -> how, and whether --quick has it too."""


def results(check: Check, *, quick: bool) -> Iterator[tuple[str, bool | None, str, float]]:
    """Each row's name, whether it passed (None: skipped), why, and its seconds."""
    for name, (row, always) in ROWS.items():
        began = time.monotonic()
        if quick and not always:
            yield name, None, "left out by --quick", 0.0
            continue
        try:
            passed, why = row(check)
        except Exception as error:  # noqa: BLE001 - a failure is a row of the table
            passed, why = False, f"{type(error).__name__}: {error}"
        yield name, passed, why, time.monotonic() - began


def main() -> int:
    """Print the table; 1 where a row failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rlhfctl-check-"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}; torch {torch.__version__}, transformers {transformers.__version__}")
    failed = 0
    try:
        for name, passed, why, seconds in results(Check(folder), quick=given.quick):
            failed += passed is False
            word = {True: "ok", False: "FAILED", None: "skipped"}[passed]
            print(f"{name:<30} {word:<8} {seconds:6.1f} s  {why}", flush=True)
    finally:
        shutil.rmtree(folder)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
