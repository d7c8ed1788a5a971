"""The report of the benchmark on the terminal: a column per engine, ratios only where two are compared."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from rlhfctl.tools.bench.view import table


def engine(**numbers: float) -> dict[str, Any]:
    given = {
        "episodes_per_s": 12.5,
        "episodes_per_s_quartiles": [11.0, 13.0],
        "tokens_per_s": 500.0,
        "update_seconds": 2.5,
        "rollout_s": 1.0,
        "score_s": 0.5,
        "update_s": 1.0,
        "flops_utilisation": 0.25,
        "peak_rss_mb": 900.0,
        "baseline_rss_mb": 400.0,
        "weights_mb": 30.5,
        "base_models": 1.25,
        "mean_length": 30.0,
        "min_length": 3,
        "max_length": 64,
    }
    return given | numbers


def report(compared: bool) -> dict[str, Any]:
    engines = {"rlhfctl": engine()} | ({"trl": engine(episodes_per_s=5.0)} if compared else {})
    ratio = {"episodes_per_s": 2.5, "peak_rss_mb": 1.0} if compared else {}
    return {
        "workload": {
            "name": "small",
            "ppo": {"per_device_train_batch_size": 32, "num_ppo_epochs": 2, "response_length": 64},
            "critic": "adapter",
            "rounds": 2,
            "updates": 6,
        },
        "machine": {
            "matmul_gflops_per_s": 123.0,
            "cpus": 2,
            "threads": 1,
            "processes": 1,
            "device": "cpu",
            "platform": "x",
        },
        "versions": {},
        "engines": engines,
        "ratio": ratio,
        "notes": ["the base is not quantized here"],
    }


def shown(given: dict[str, Any]) -> str:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table(given))
    return console.export_text()


def test_one_engine_has_a_column_and_no_ratio() -> None:
    text = shown(report(compared=False))
    assert "small: batch 32, 2 PPO epochs" in text and "critic adapter; cpu, 1 thread," in text
    assert "trl" not in text and "ratio" not in text
    assert "25.0%" in text and "3 to 64" in text and "the base is not quantized here" in text


def test_two_engines_have_ratios_where_they_are_compared() -> None:
    text = shown(report(compared=True))
    median = next(line for line in text.splitlines() if line.startswith("episodes/s, median"))
    assert median.split()[-3:] == ["12.50", "5.00", "2.50"]
    assert "ratio: rlhfctl over trl" in text
