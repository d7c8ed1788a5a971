"""Measure time and memory of PPO updates with this engine and with TRL's PPOTrainer: `rlhfctl bench ppo`.

    parent    prepares one model, one reward model and prompts in a temporary folder; measures the matrix product
    workers   rlhfctl, trl, rlhfctl, trl, ...: each in its own process, each writes a JSON file
    parent    medians over all updates, a table, a JSON report

Both engines get the same model, prompts, lengths, epochs and precision. They differ in the models in memory: TRL has a
LoRA policy, a whole critic and a whole reward model; rlhfctl has the critic and the same reward model as adapters with
heads on the policy's base. Reads the `model` and `ppo` sections of a recipe, if one is named. A recipe's data are not
read: prompts are random tokens, and lengths are planted (inputs.py). Writes no run.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import rlhfctl
from rlhfctl.tools.bench.costs import matmul_rate, model_flop_utilisation
from rlhfctl.tools.bench.inputs import prepare
from rlhfctl.tools.bench.process import run_module
from rlhfctl.tools.bench.workload import PHASES, RLHFCTL, TRL, WARM_UP, Workload, comparable
from rlhfctl.training.trl import ppo
from rlhfctl.training.trl.quiet import quiet_libraries

_UNEQUAL = 0.2  # relative difference of mean lengths above which the engines' work is not comparable


def measured(
    work: Workload,
    *,
    against: str | None = None,
    critic: str | None = None,
    updates: int | None = None,
    rounds: int = 2,
    processes: int = 1,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Measure the engines, and return the report: `engines.<name>`, `ratio`, workload, machine, versions, notes.

    `processes`: in how many this engine runs, each with its part of the threads. TRL's runs in one with all of them.
    """
    count = updates or work.updates
    section = comparable(work.ppo, count, critic, ends=work.ends)
    engines = [RLHFCTL, TRL] if against else [RLHFCTL]
    with tempfile.TemporaryDirectory(prefix="rlhfctl-bench-") as temporary:
        folder = Path(temporary)
        with quiet_libraries(folder / "libraries.log"):
            if against is not None:
                ppo.require()
            notes = prepare(work, section, folder)
        rate = matmul_rate()
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
        for turn in range(rounds):
            for name in engines:
                say(f"round {turn + 1} of {rounds}: {name}, {count} updates of {section.batch_size} episodes")
                results[name].append(run_worker(name, folder, processes=processes if name == RLHFCTL else 1))
    summaries = {name: summarise(runs, rate) for name, runs in results.items()}
    report: dict[str, Any] = {
        "workload": {
            "name": work.name,
            "model": work.model.model_dump(mode="json", exclude={"init": {"tokens"}}),
            "ppo": section.model_dump(mode="json", exclude={"eval"}),
            "critic": section.critic_kind,
            "rounds": rounds,
            "updates": count,
            "warm_up": WARM_UP,
        },
        "machine": {
            "matmul_gflops_per_s": rate / 1e9,
            "cpus": os.cpu_count(),
            "threads": results[RLHFCTL][0]["threads"],
            "processes": processes,
            "device": results[RLHFCTL][0]["device"],
            "device_name": results[RLHFCTL][0]["device_name"],
            "platform": platform.platform(),
        },
        "versions": {"rlhfctl": rlhfctl.__version__}
        | {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        "engines": summaries,
        "ratio": {},
        "notes": notes,
    }
    if against:
        own, trl = summaries[RLHFCTL], summaries[TRL]
        report["ratio"] = {key: own[key] / trl[key] for key in ("episodes_per_s", "peak_rss_mb")}
        report["ratio"] |= {
            key: own[key] / trl[key] for key in ("tokens_per_s", "update_seconds", *PHASES, "weights_mb")
        }
        if abs(own["mean_length"] / trl["mean_length"] - 1) > _UNEQUAL:
            notes.append(
                "the engines' responses differ in mean length: their work is not the same, measure more updates"
            )
    return report


def run_worker(engine: str, folder: Path, timeout: float | None = None, processes: int = 1) -> dict[str, Any]:
    """Run one engine's updates in a separate process, or in several, on the files that `prepare` wrote to `folder`.

    EngineError with the end of its output if it fails. subprocess.TimeoutExpired after `timeout` seconds (None: never).
    """
    return run_module(
        "rlhfctl.tools.bench.workers",
        [engine, str(folder)],
        folder / f"{engine}.json",
        where=f"bench ppo: {engine}",
        fix="if memory ran out, use --workload small or a smaller per_device_train_batch_size",
        timeout=timeout,
        threads=None if processes == 1 else max(1, torch.get_num_threads() // processes),
        processes=processes,
    )


def summarise(runs: Sequence[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Summarise one engine's rounds: medians over all counted updates, and the highest memory of any round."""
    entries = [entry for run in runs for entry in run["updates"]]
    speeds = sorted(entry["episodes"] / entry["seconds"] for entry in entries)
    spread = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else [speeds[0]] * 3
    lengths = [length for run in runs for length in run["lengths"]]
    flops, seconds = sum(entry["flops"] for entry in entries), sum(entry["seconds"] for entry in entries)
    tokens = sum(entry["prompt_tokens"] + entry["response_tokens"] for entry in entries)
    summary: dict[str, Any] = {
        "episodes_per_s": spread[1],
        "episodes_per_s_quartiles": [spread[0], spread[2]],
        "tokens_per_s": tokens / seconds,
        "update_seconds": statistics.median(entry["seconds"] for entry in entries),
        **{name: statistics.median(entry[name] for entry in entries) for name in PHASES},
        "flops_utilisation": flops / (seconds * rate),
        "mfu": model_flop_utilisation(flops, seconds, runs[0].get("device_name", "")),
        "flops_per_update": flops / len(entries),
        "mean_length": statistics.fmean(lengths),
        "min_length": min(lengths),
        "max_length": max(lengths),
        "stdev_length": statistics.pstdev(lengths),
        "mean_prompt_length": statistics.fmean(entry["prompt_tokens"] / entry["episodes"] for entry in entries),
        "updates": len(entries),
    }
    for name in ("peak_rss_mb", "baseline_rss_mb", "weights_mb", "base_models", "peak_device_mb", "reserved_device_mb"):
        values = [run[name] for run in runs if run.get(name) is not None]
        summary |= {name: max(values)} if values else {}
    if "recomputes" in runs[0]:
        summary["recomputes"] = any(run["recomputes"] for run in runs)
    return summary
