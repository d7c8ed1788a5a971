"""The benchmark: its report, its arithmetic, and that lengths are spread as planted."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli

from rlhfctl.errors import EngineError
from rlhfctl.tools.bench import bench
from rlhfctl.tools.bench.workload import reference_workload
from rlhfctl.training.trl import ppo as ppo_module

CONTRACT = ("episodes_per_s", "peak_rss_mb", "rollout_s", "score_s", "update_s", "flops_utilisation")


@pytest.mark.slow
def test_both_engines_are_measured(tiny_recipe: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "bench.json"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = cli("bench", "ppo", tiny_recipe, "--against", "trl", "--updates", 2, "--rounds", 1, "--json", file)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 60  # the processor's seconds, whatever else it does
    report = json.loads(file.read_text(encoding="utf-8"))
    engines = report["engines"]
    assert set(engines) == {"rlhfctl", "trl"}
    for engine in engines.values():
        for key in (*CONTRACT, "weights_mb", "base_models", "mean_length"):
            assert engine[key] > 0, key
        assert engine["updates"] == 2
        assert engine["flops_utilisation"] < 1
        assert 1 <= engine["min_length"] <= engine["mean_length"] <= engine["max_length"] <= 12
        phases = sum(engine[name] for name in ("rollout_s", "score_s", "update_s"))
        assert phases == pytest.approx(engine["update_seconds"], rel=1e-3)  # of two updates the median is the mean
    for key in ("episodes_per_s", "peak_rss_mb"):
        assert report["ratio"][key] == pytest.approx(engines["rlhfctl"][key] / engines["trl"][key])
    # One base for all roles here; policy, reward model and a trained critic (weights, gradients, two moments) there.
    assert engines["rlhfctl"]["base_models"] < 3 < 5 < engines["trl"]["base_models"]
    assert "ratio" in done.stdout and "episodes/s" in done.stdout


@pytest.mark.ci
def test_two_processes_sample_what_one_does_and_a_number_format_is_used(
    tiny_recipe: Path, tmp_path: Path, cli: Cli
) -> None:
    found = {}
    for name, options in (("one", []), ("two", ["--num-processes", 2]), ("bf16", ["--dtype", "bfloat16"])):
        file = tmp_path / f"{name}.json"
        done = cli("bench", "ppo", tiny_recipe, *options, "--updates", 2, "--rounds", 1, "--json", file)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(file.read_text(encoding="utf-8")) | {"said": done.stdout}
    one, two, bf16 = (found[name]["engines"]["rlhfctl"] for name in ("one", "two", "bf16"))
    for key in ("mean_length", "min_length", "max_length", "mean_prompt_length", "flops_per_update"):
        assert one[key] == two[key]
    assert two["baseline_rss_mb"] > 1.5 * one["baseline_rss_mb"]  # of both together
    assert "rlhfctl in 2 processes of 1 thread," in " ".join(found["two"]["said"].split())
    assert found["bf16"]["workload"]["model"]["dtype"] == "bfloat16" and bf16["weights_mb"] < 0.8 * one["weights_mb"]


def test_without_trls_trainer_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise EngineError("no PPOTrainer")

    monkeypatch.setattr(ppo_module, "require", gone)
    monkeypatch.setattr(bench, "prepare", lambda *_: pytest.fail("started"))
    with pytest.raises(EngineError, match="no PPOTrainer"):
        bench.measured(reference_workload("small"), against="trl")


def test_a_failing_worker_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(EngineError, match="code 3:\nout of memory"):
        bench.run_worker("rlhfctl", tmp_path)


def test_help_loads_no_torch() -> None:
    code = """
import sys
from rlhfctl.cli import app
try:
    app(["bench", "ppo", "--help"], standalone_mode=False)
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--against" in done.stdout and "Example: rlhfctl bench ppo" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
