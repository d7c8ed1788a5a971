"""The rows of check.sh about correctness: a tiny recipe through all stages on this device, and what it must give.

Runs `rlhfctl` as a user would, in a temporary folder, and reads what the runs leave. What cannot be checked here is
skipped with its reason.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_rows import Budget, Outcome, Row
from safetensors.torch import load_file

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
SAME = 1e-3  # relative, between one update here and on the CPU, and between weights after a resume on a GPU
RELOADED = 1e-4  # nats per token or score, between a model before it is saved and after it is loaded
STEP_ZERO = {"float32": 1e-4, "quantized": 1e-3}  # nats per response


class Check:
    """The runs that the rows share, made when they are first asked for."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.folder = folder
        self.budget = budget
        (folder / "check.yaml").write_text(RECIPE, encoding="utf-8")
        self.on_gpu = torch.cuda.is_available()

    def rlhfctl(self, *arguments: str, cpu: bool = False) -> subprocess.CompletedProcess[str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
        done = subprocess.run(
            [sys.executable, "-m", "rlhfctl", *arguments],
            cwd=self.folder,
            env={**os.environ, **hidden},
            capture_output=True,
            text=True,
            check=False,
            timeout=self.budget.left(),
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise AssertionError(f"exit {done.returncode}: {said[-1][:160] if said else ''}")
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


def whole_run(check: Check, dtype: str, largest_gap: float, *more: str, name: str = "") -> Outcome:
    """All stages in one number format; sampling and update agree within `largest_gap` nats per token."""
    rate = [] if dtype == "float32" else ["ppo.learning_rate=1e-2"]
    run = check.run(name or dtype, f"model.dtype={dtype}", *rate, *more)
    gap = max((one["rollout_gap"] for one in check.updates(run) if "rollout_gap" in one), default=math.nan)
    verdict = json.loads((run / "compare" / "compare.json").read_text(encoding="utf-8"))["verdict"]
    return Outcome(gap <= largest_gap, f"rollout gap {gap:.2g} nats per token, verdict {verdict}", {"rollout_gap": gap})


def hand_over(check: Check) -> Outcome:
    """What sft and reward measured after they saved their models and loaded them again."""
    run = check.run("float32")
    gaps = {
        stage: json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))["metrics"]["reload_gap"]
        for stage in ("sft", "reward")
    }
    return Outcome(max(gaps.values()) <= RELOADED, f"largest gap after reloading {max(gaps.values()):.2g}", gaps)


def step_zero(check: Check) -> Outcome:
    kl = abs(check.updates(check.run("float32"))[0]["kl"])
    return Outcome(kl <= STEP_ZERO["float32"], f"KL {kl:.2g} nats before the first update", {"kl": kl})


def one_update(check: Check) -> Outcome:
    """The first update of the run on this device, and one from the same base* and reward model on the CPU."""
    run = check.run("float32")
    models = ("--policy", str(run / "sft"), "--reward-model", str(run / "reward"), "--run-dir", "cpu")
    check.rlhfctl("ppo", "check.yaml", *models, "--set", "ppo.total_episodes=16", cpu=True)
    here, cpu = check.updates(run)[0], check.updates(check.folder / "cpu")[0]
    names = [name for name in ("score", "kl", "policy_loss", "value_loss", "grad_norm") if name in cpu]
    off = max(abs(here[name] - cpu[name]) / max(1e-2, abs(cpu[name])) for name in names)
    return Outcome(off <= SAME, f"largest relative difference {off:.2g} of {', '.join(names)}", {"difference": off})


def in_slots(check: Check) -> Outcome:
    """Sampling in slots (on a GPU: by CUDA graphs) gives the log-probabilities of the training forward."""
    run = check.run("float32")
    models = ("--policy", str(run / "sft"), "--reward-model", str(run / "reward"), "--run-dir", "slots")
    more = ("ppo.sampler=slots", "ppo.total_episodes=16", "ppo.local_rollout_forward_batch_size=6")
    check.rlhfctl("ppo", "check.yaml", *models, *(part for one in more for part in ("--set", one)))
    gap = check.updates(check.folder / "slots")[0]["rollout_gap"]
    return Outcome(gap <= FLOAT32_GAP, f"rollout gap {gap:.2g} nats per token", {"rollout_gap": gap})


def resumed(check: Check) -> Outcome:
    """PPO killed after a checkpoint: the same command ends with the same weights."""
    run = check.run("float32")
    models = ["--policy", str(run / "sft"), "--reward-model", str(run / "reward"), "--run-dir", "killed"]
    command = [sys.executable, "-m", "rlhfctl", "ppo", "check.yaml", *models]
    process = subprocess.Popen(command, cwd=check.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(check.folder.glob("killed/ppo/work/checkpoint-1/complete.json")):
        time.sleep(0.01)
        if not check.budget.left():
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    check.rlhfctl(*command[3:])
    off = largest_difference(run / "ppo", check.folder / "killed" / "ppo")
    limit = SAME if check.on_gpu else 0.0
    return Outcome(off <= limit, f"largest relative difference of a weight {off:.2g}", {"difference": off})


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference of a weight in the files of two finished ppo stages, relative to its tensor's largest."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    if not files:
        raise AssertionError(f"no weights in {one}")
    off = 0.0
    for file in files:
        left, right = load_file(one / file), load_file(other / file)
        if left.keys() != right.keys():
            raise AssertionError(f"other weights in {file}")
        for name, tensor in left.items():
            gap = (tensor.double() - right[name].double()).abs().max()
            off = max(off, float(gap / tensor.double().abs().max().clamp(min=1e-12)))
    return off


def few_bits(check: Check, bits: str) -> Outcome:
    """PPO on a base in few bits: policy and reference agree before the first update."""
    if find_spec("bitsandbytes") is None:
        return Outcome(None, "bitsandbytes is not installed")
    base = check.run("float32") / "sft" / "model"
    recipe = RECIPE.replace(RECIPE[RECIPE.index("model:") : RECIPE.index("lora:")], "").replace("lora: null, ", "")
    (check.folder / f"{bits}.yaml").write_text(f"{recipe}model: {{path: {base}, quantization: {bits}}}\n")
    check.rlhfctl("run", f"{bits}.yaml", "--run-dir", bits, "--until", "ppo", "--set", "ppo.total_episodes=16")
    kl = abs(check.updates(check.folder / bits)[0]["kl"])
    return Outcome(kl <= STEP_ZERO["quantized"], f"KL {kl:.2g} nats before the first update", {"kl": kl})


def flash(check: Check) -> Outcome:
    """All stages with flash attention, where there is a GPU and the package."""
    if not check.on_gpu:
        return Outcome(None, "flash attention needs a GPU")
    if find_spec("flash_attn") is None:
        return Outcome(None, "the package flash_attn is not installed")
    return whole_run(check, "bfloat16", BFLOAT16_GAP, "model.attn_implementation=flash_attention_2", name="flash")


# name -> how, the seconds that must be left for it to begin, whether --quick has it too
_ROWS: dict[str, tuple[Callable[[Check], Outcome], float, bool]] = {
    "all stages in float32": (lambda check: whole_run(check, "float32", FLOAT32_GAP), 0, True),
    "hand-over": (hand_over, 0, True),
    "KL at step 0": (step_zero, 0, True),
    "one update beside the CPU's": (one_update, 30, True),
    "sampling in slots": (in_slots, 15, False),
    "resume after a kill": (resumed, 30, False),
    "all stages in bfloat16": (lambda check: whole_run(check, "bfloat16", BFLOAT16_GAP), 40, False),
}
_EXTRA_ROWS: dict[str, tuple[Callable[[Check], Outcome], float, bool]] = {
    "8 bits": (lambda check: few_bits(check, "8bit"), 40, False),
    "4 bits": (lambda check: few_bits(check, "4bit"), 40, False),
    "flash attention": (flash, 40, False),
}


def _rows(table: dict[str, tuple[Callable[[Check], Outcome], float, bool]], check: Check) -> list[Row]:
    return [Row(name, lambda how=how: how(check), least, quick) for name, (how, least, quick) in table.items()]


def rows(check: Check) -> list[Row]:
    """The rows that every GPU can make."""
    return _rows(_ROWS, check)


def extra_rows(check: Check) -> list[Row]:
    """The rows that need a package more."""
    return _rows(_EXTRA_ROWS, check)
