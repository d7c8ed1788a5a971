"""Measure reading, checking and encoding of a number of rows: `python -m rlhfctl.tools.bench.rows_worker FOLDER FILE`.

    plant_rows      writes prompts, preference pairs and demonstrations as JSONL, short rows of a few words
    read            what every command does first: read, check, compare, split
    encode          what the start of a run adds: each row through the tokenizer, and the prompts' ids that PPO keeps

Writes the seconds and the peak memory of both to FILE. Loads no weights.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.data import load, preflight
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.models import devices, tokenizing
from rlhfctl.recipe.schema import Recipe
from rlhfctl.tools.bench.workload import MB, SEED

MOST_PAIRS = 200_000
DEMONSTRATIONS = 200
_CONTEXT, _RESPONSE = 256, 32  # tokens
_INIT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": _CONTEXT,
}
_WORDS = (
    "small",
    "quick",
    "old",
    "green",
    "river",
    "house",
    "letter",
    "story",
    "bird",
    "night",
    "road",
    "stone",
    "finds",
)


def plant_rows(folder: Path, prompts: int) -> None:
    """Write `prompts` rows of prompts, a fifth as many pairs (at most MOST_PAIRS), and a few demonstrations."""
    draw = random.Random(SEED)

    def words(count: int) -> str:
        return " ".join(draw.choices(_WORDS, k=count))

    def write(name: str, count: int, row: Callable[[int], dict[str, Any]]) -> None:
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                file.write(json.dumps(row(number)) + "\n")

    pairs = min(MOST_PAIRS, max(20, prompts // 5))
    write("prompts", prompts, lambda n: {"prompt": f"Tell {n} about {words(10)}:", "level": n % 7})
    write(
        "preferences",
        pairs,
        lambda n: {"prompt": f"Say {n // 2}:", "chosen": f" {words(9)}", "rejected": f" {words(8)}."},
    )
    write("demonstrations", DEMONSTRATIONS, lambda n: {"prompt": f"Show {n}:", "completion": f" {words(9)}"})


def recipe_of(folder: Path) -> Recipe:
    """Return the recipe that reads what `plant_rows` wrote."""
    names = ("prompts", "preferences", "demonstrations")
    data: dict[str, Any] = {name: {"source": str(folder / f"{name}.jsonl")} for name in names}
    data["prompts"] |= {"eval": 16, "test": 16}
    return Recipe.model_validate(
        {
            "name": "scale",
            "model": {"init": _INIT},
            "data": data,
            "sft": {},
            "reward": {},
            "ppo": {"response_length": _RESPONSE},
        }
    )


def measured(folder: Path) -> dict[str, Any]:
    """Read and encode the rows of `folder`; return seconds by the clock and the processor's, and MB."""
    recipe = recipe_of(folder)
    devices.release_memory()
    devices.restart_peak()
    before = devices.resident_bytes()
    phases: dict[str, dict[str, float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, processor = time.perf_counter(), time.process_time()
        result = work()
        phases[name] = {"seconds": time.perf_counter() - began, "processor_s": time.process_time() - processor}
        return result

    data = timed("read", lambda: load.check_all(recipe.data, recipe.data_seed))
    tokenizer = tokenizing.prepare(recipe, data).tokenizer

    def encode() -> Any:
        kept = preflight.check(recipe, data, (), tokenizer)
        split: Any = kept["prompts"].split
        return encode_prompts(split.train, tokenizer, _CONTEXT, _RESPONSE, recipe.data, lambda sentence: None)

    _, ids = timed("encode", encode)
    peak = devices.highest_resident_bytes()
    return {"phases": phases, "rows": len(ids), "peak_rss_mb": peak / MB, "baseline_rss_mb": before / MB}


def main(folder: str, out: str) -> None:
    """Measure the rows that stand in `folder`."""
    fs.write_json(Path(out), measured(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
