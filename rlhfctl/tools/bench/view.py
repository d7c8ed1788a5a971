"""Show the report of `rlhfctl bench ppo` as a table in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def table(report: dict[str, Any]) -> RenderableType:
    """Draw the report as a table with one column per engine, the workload above it and remarks below."""
    engines, setup, machine = report["engines"], report["workload"], report["machine"]
    ppo = setup["ppo"]
    head = (
        f"{setup['name']}: batch {ppo['per_device_train_batch_size']}, {ppo['num_ppo_epochs']} PPO epochs, responses "
        f"of at most {ppo['response_length']} tokens, critic {setup['critic']}; {machine['device']}, "
        f"{_threads(machine)}, matrix product {machine['matmul_gflops_per_s']:.0f} GFLOP/s"
    )
    grid = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column("")
    for name in engines:
        grid.add_column(name, justify="right")
    compared = bool(report["ratio"])
    if compared:
        grid.add_column("ratio", justify="right")

    def add(label: str, show: Callable[[dict[str, Any]], str], ratio: str | None = None) -> None:
        cells = [show(engine) for engine in engines.values()]
        if compared:
            cells.append(f"{report['ratio'][ratio]:.2f}" if ratio in report["ratio"] else "")
        grid.add_row(label, *cells)

    add("episodes/s, median", lambda e: f"{e['episodes_per_s']:.2f}", "episodes_per_s")
    add("  quartiles", lambda e: " to ".join(f"{speed:.2f}" for speed in e["episodes_per_s_quartiles"]))
    add("tokens/s, prompts and responses", lambda e: f"{e['tokens_per_s']:.0f}", "tokens_per_s")
    add("seconds an update", lambda e: f"{e['update_seconds']:.2f}", "update_seconds")
    add("  rollout", lambda e: f"{e['rollout_s']:.2f}", "rollout_s")
    add("  score", lambda e: f"{e['score_s']:.2f}", "score_s")
    add("  update", lambda e: f"{e['update_s']:.2f}", "update_s")
    add("share of matrix product", lambda e: f"{e['flops_utilisation']:.1%}")
    if all(engine.get("mfu") is not None for engine in engines.values()):
        add("model FLOP utilisation", lambda e: f"{e['mfu']:.1%}")
    add("peak memory, MB", lambda e: f"{e['peak_rss_mb']:.0f}", "peak_rss_mb")
    add("  before training", lambda e: f"{e['baseline_rss_mb']:.0f}")
    if all("peak_device_mb" in engine for engine in engines.values()):
        add("peak on the device, MB", lambda e: f"{e['peak_device_mb']:.0f}")
    add("weights and optimizer, MB", lambda e: f"{e['weights_mb']:.1f}", "weights_mb")
    add("  as multiples of the model", lambda e: f"{e['base_models']:.2f}")
    add("response length, mean", lambda e: f"{e['mean_length']:.1f}")
    add("  from, to", lambda e: f"{e['min_length']} to {e['max_length']}")
    parts: list[RenderableType] = [Text(head), Text(), grid]
    if compared:
        parts += [Text(), Text("ratio: rlhfctl over trl", "dim")]
    parts += [Text(note, "dim") for note in report["notes"]]
    return Group(*parts)


def _threads(machine: dict[str, Any]) -> str:
    count, threads = machine["processes"], f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return threads if count == 1 else f"rlhfctl in {count} processes of {threads}"
