"""How well `rlhfctl plan` foresees memory and disk: three sizes of model, with and without LoRA, stage by stage.

    python tests/campaigns/memory.py [--sizes small,medium,large] [--json FILE]

Makes a model folder and rows of random words, asks for the plan, runs the recipe, and sets what the plan said beside
what the stages recorded (`peak_memory` in events.jsonl; on a CPU the process's highest resident size) and beside the
run folder's largest and last size. Prints a table; exits with 1 where a prediction is further off than allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ALLOWED = {"memory": 0.20, "disk": 0.10}
SIZES = {  # layers, width, heads, vocabulary, rows of a batch
    "small": (6, 256, 4, 4096, 16),
    "medium": (8, 512, 8, 16384, 8),
    "large": (12, 768, 12, 32000, 4),
}
PROMPT, RESPONSE, ROWS = 60, 120, 64


def make(folder: Path, size: str, lora: bool) -> Path:
    """A model folder, three files of rows and a recipe that takes two steps of each stage."""
    from rlhfctl.models import build, loading, tokenizing
    from rlhfctl.recipe.schema import Init

    layers, width, heads, vocabulary, batch = SIZES[size]
    words = [f"w{index} " for index in range(vocabulary - 2)]
    init = Init(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tokens=words,
        max_position_embeddings=512,
    )
    tokenizer = tokenizing.train_tokenizer(init, [])
    model = build.build_model(init, tokenizer, seed=0, dtype=loading.torch_dtype("float32"))
    build.save_model(model, tokenizer, folder / "model")
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return "".join(draw.choices(words, k=draw.randint(low, high)))

    def write(name: str, **columns: tuple[int, int]) -> None:
        rows = [{column: text(*bounds) for column, bounds in columns.items()} for _ in range(ROWS)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    prompt, response = (PROMPT // 2, PROMPT), (RESPONSE * 3 // 4, RESPONSE)
    write("demonstrations.jsonl", prompt=prompt, completion=response)
    write("preferences.jsonl", prompt=prompt, chosen=response, rejected=response)
    write("prompts.jsonl", prompt=prompt)
    recipe = {
        "name": "memory",
        "model": {"path": "model"},
        "lora": {"r": 16, "lora_alpha": 32} if lora else None,
        "data": {
            "demonstrations": {"source": "demonstrations.jsonl"},
            "preferences": {"source": "preferences.jsonl"},
            "prompts": {"source": "prompts.jsonl", "eval": 8, "test": 8},
        },
        "sft": {"trainer": {"max_steps": 2, "per_device_train_batch_size": batch}},
        "reward": {"trainer": {"max_steps": 2, "per_device_train_batch_size": batch // 2}},
        "ppo": {
            "total_episodes": 2 * batch,
            "per_device_train_batch_size": batch,
            "response_length": RESPONSE,
            "stop_token": None,
            "num_ppo_epochs": 1,
            "trace_every": 0,
            "eval": {"every": 1},
        },
        "compare": {"samples_per_prompt": 1, "judges": ["reward_model"], "bootstrap_samples": 100},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def called(*arguments: object) -> str:
    command = [sys.executable, "-m", "rlhfctl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}{done.stdout}")
    return done.stdout


def folder_bytes(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):  # which passes over what is gone meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(path) / name).stat().st_size
    return total


class Largest(threading.Thread):
    """The largest size that a folder has while this runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.found, self.over = folder, 0, False

    def run(self) -> None:
        while not self.over:
            self.found = max(self.found, folder_bytes(self.folder))
            time.sleep(0.02)


def measure(size: str, lora: bool) -> list[dict[str, Any]]:
    """A line for each stage, and two for the disk."""
    with tempfile.TemporaryDirectory(prefix="rlhfctl-memory-") as temporary:
        recipe, run = make(Path(temporary), size, lora), Path(temporary) / "run"
        plan = json.loads(called("plan", recipe, "--run-dir", run, "--json"))
        largest = Largest(run)
        largest.start()
        called("run", recipe, "--run-dir", run)
        largest.over = True
        largest.join()
        records = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        peaks = {record["stage"]: record["peak_memory"] for record in records if record["event"] == "finished"}
        lines = [("memory", stage["name"], stage["predicted"], peaks[stage["name"]]) for stage in plan["stages"]]
        lines.append(("disk", "highest", plan["disk"]["highest"], largest.found))
        lines.append(("disk", "kept", plan["disk"]["kept"], folder_bytes(run)))
    weights = "LoRA" if lora else "all weights"
    return [
        {"size": size, "trains": weights, "what": what, "of": of, "predicted": said, "measured": was,
         "overhead": plan["memory_overhead"] if what == "memory" else 0}
        for what, of, said, was in lines
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--json", type=Path, help="also write the lines here")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    worst = dict.fromkeys(ALLOWED, 0.0)
    print(f"{'size':8} {'trains':12} {'what':7} {'of':8} {'predicted':>10} {'measured':>10} {'off':>7}")
    for size in arguments.sizes.split(","):
        for lora in (True, False):
            for line in measure(size, lora):
                off = line["predicted"] / line["measured"] - 1
                worst[line["what"]] = max(worst[line["what"]], abs(off))
                said, was = line["predicted"] / 1e6, line["measured"] / 1e6
                head = f"{size:8} {line['trains']:12} {line['what']:7} {line['of']:8}"
                print(f"{head} {said:7.0f} MB {was:7.0f} MB {off:+7.1%}", flush=True)
                lines.append(line)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=2), encoding="utf-8")
    print("; ".join(f"{what}: at most {share:.1%} off, allowed {ALLOWED[what]:.0%}" for what, share in worst.items()))
    return int(any(share > ALLOWED[what] for what, share in worst.items()))


if __name__ == "__main__":
    sys.exit(main())
