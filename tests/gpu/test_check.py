"""The GPU check runs on a CPU, too; its rows can fail, keep to their time, and become files."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import check
import pytest
import torch
from conftest import ROOT
from gpu_rows import Budget, Done, Outcome, Row, as_json, as_markdown, made
from gpu_speed import FULL, TOY, Speed, beside_plan, figures_of, make_model
from gpu_stages import Check, extra_rows, few_bits, flash, largest_difference
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhfctl.errors import EngineError
from rlhfctl.recipe.schema import Lora, Ppo

TOY_SECTION = Ppo(lora=Lora(r=4))
SECOND = {"episodes": 4, "seconds": 2.0, "rollout_s": 1.0, "score_s": 0.5, "update_s": 0.5, "flops": 989e12}
RUN: dict[str, Any] = {
    "updates": [SECOND | {"prompt_tokens": 40, "response_tokens": 60}] * 2,
    "lengths": [15] * 8,
    "peak_rss_mb": 1073.741824,
    "device_name": "NVIDIA H100 80GB HBM3",
}


@pytest.mark.parametrize("options", [("--quick",), pytest.param((), marks=pytest.mark.ci)])
def test_it_passes_here(options: tuple[str, ...], tmp_path: Path) -> None:
    files = {"--json": tmp_path / "found.json", "--markdown": tmp_path / "found.md"}
    command = ["bash", str(ROOT / "tests" / "gpu" / "check.sh"), "--toy", "--minutes", "60", *options]
    command += [str(part) for pair in files.items() for part in pair]
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all passed" in result.stdout
    found = json.loads(files["--json"].read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["rows"]}
    assert found["passed"] and all(row["result"] != "FAILED" for row in rows.values())
    quick = ("rlhfctl, head", "TRL's PPOTrainer")
    for name in quick if options else (*quick, "rlhfctl, head, slots", "rlhfctl, adapter, faster sampler"):
        figures = rows[name]["figures"]
        assert figures["tokens_per_s"] > 0 and sum(figures["shares"].values()) == pytest.approx(1)
        assert figures["episodes"] == TOY.rows * TOY.updates
    made = {name for name, row in rows.items() if row["result"] == "ok"}
    assert made >= {"all stages in float32", "hand-over", "KL at step 0", "one update beside the CPU's", *quick}
    assert options or made >= {"resume after a kill", "all stages in bfloat16", "sampling in slots"}
    assert rows["rlhfctl, head"]["figures"]["plan_gib"] > 0
    assert "| rlhfctl, head |" in files["--markdown"].read_text(encoding="utf-8")


def outcome(word: str) -> Outcome:
    if word == "raises":
        raise AssertionError("not what it should be")
    if word == "late":
        raise subprocess.TimeoutExpired("rlhfctl", 3.0)
    return Outcome(True, "fine")


def test_a_row_that_fails_fails_the_check_and_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        Row("good", lambda: outcome("fine"), quick=True),
        Row("bad", lambda: outcome("raises"), quick=True),
        Row("long", lambda: outcome("raises")),
    ]
    monkeypatch.setattr(check, "all_rows", lambda *_: (rows, "some work"))
    monkeypatch.setattr(sys, "argv", ["check.py", "--quick", "--json", str(tmp_path / "found.json")])
    assert check.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["good", "ok"], ["bad", "FAILED"], ["long", "skipped"]]
    assert lines[-1] == "1 failed"
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert not found["passed"] and [row["result"] for row in found["rows"]] == ["ok", "FAILED", "skipped"]


def test_a_row_that_would_exceed_the_time_is_skipped_and_says_so() -> None:
    now = [0.0]

    def takes(seconds: float) -> Outcome:
        now[0] += seconds
        return Outcome(True, "fine")

    rows = [
        Row("first", lambda: takes(50), least=60),
        Row("too long", lambda: takes(20), least=20),
        Row("short", lambda: takes(5), least=5),
        Row("late", lambda: outcome("late")),
    ]
    done = list(made(rows, Budget(60, clock=lambda: now[0])))
    assert [one.outcome.passed for one in done] == [True, None, True, None]
    assert done[1].outcome.why == "needs 20 s, and 10 s of the time are left"
    assert done[3].outcome.why == "stopped after 3 s: the time was over"


def test_figures_by_hand() -> None:
    """Two updates of two seconds, each with 100 tokens and the operations of one second at an H100's peak."""
    figures = figures_of(RUN)
    assert (figures["tokens_per_s"], figures["mfu"], figures["episodes"]) == (50.0, 0.5, 8)
    assert figures["shares"] == {"sampling": 0.5, "scoring": 0.25, "learning": 0.25}
    assert figures["peak_gib"] == pytest.approx(1.0)
    on_gpu = figures_of(RUN | {"peak_device_mb": 2 * 1073.741824, "reserved_device_mb": 3 * 1073.741824})
    assert (on_gpu["peak_gib"], on_gpu["reserved_gib"]) == pytest.approx((2.0, 3.0))
    assert beside_plan(2.0, 1.5) == {"plan_gib": 1.5, "plan_error": -0.25}


def test_the_table_can_be_pasted_into_the_log() -> None:
    figures = figures_of(RUN) | beside_plan(1.0, 1.1)
    done = [
        Done("hand-over", Outcome(True, "largest gap 1e-7 | no more"), 1.0),
        Done("rlhfctl, head", Outcome(True, "", figures), 9.0),
        Done("TRL's PPOTrainer", Outcome(None, "stopped after 9 s"), 9.0),
    ]
    about = {"device": "one card", "versions": {"torch": "2"}, "command": "check.sh", "work": "The work."}
    lines = as_markdown(about, done).splitlines()
    assert lines[0] == "one card; torch 2. `check.sh`"
    assert "| hand-over | ok | largest gap 1e-7 / no more |" in lines
    assert "| TRL's PPOTrainer | skipped | stopped after 9 s |" in lines
    assert lines[-1] == "| rlhfctl, head | 50 | 50% | 25% | 25% | 50.0% | 1.00 | 1.10 | +10.0% |"
    assert lines[-3].count("|") == lines[-2].count("|") == lines[-1].count("|")
    assert as_json(about, done)["rows"][1]["figures"]["mfu"] == 0.5


def test_speed_is_measured_where_it_means_something(tmp_path: Path) -> None:
    """Without a GPU only the toy is measured; the full size is the shape of a 1B Llama, and 512 episodes."""
    given = argparse.Namespace(quick=False, toy=False)
    names = [row.name for row in check.all_rows(given, tmp_path, Budget(1))[0]]
    assert ("TRL's PPOTrainer" in names) == torch.cuda.is_available()
    given.toy = True
    names = [row.name for row in check.all_rows(given, tmp_path, Budget(1))[0]]
    assert "TRL's PPOTrainer" in names and "512 episodes" in FULL.sentence
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**FULL.shape))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400


def test_the_toys_model_has_the_shape_that_was_asked_for(tmp_path: Path) -> None:
    folder = make_model(TOY.shape, 12, tmp_path / "made")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and model.config.num_key_value_heads == 2
    speed = Speed(tmp_path / "speed", TOY, Budget(60))
    section = speed.section("head")
    assert (section.batch_size, section.mini_batch_size, section.stop_token) == (4, 2, None)
    assert section.total_episodes == TOY.rows * (TOY.updates + 1)


def test_the_adapter_is_measured_with_the_sampler_that_was_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed, asked = Speed(tmp_path / "speed", TOY, Budget(60)), []
    monkeypatch.setattr(speed, "measured", lambda *given: asked.append(given))
    speed._adapter()
    speed.speeds = {"batch": 3.0, "slots": 4.0}
    speed._adapter()
    assert [given[1:] for given in asked] == [("adapter", "batch"), ("adapter", "slots")]
    assert speed.section("head", "slots").sampler == "slots"


def test_an_engine_that_does_not_end_in_time_or_in_memory_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = Speed(tmp_path, TOY, Budget(60))
    monkeypatch.setattr(Speed, "files", tmp_path)
    monkeypatch.setattr(Speed, "section", lambda *_: TOY_SECTION)
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")

    def raising(error: Exception) -> None:
        def worker(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("gpu_speed.run_worker", worker)

    raising(subprocess.TimeoutExpired("worker", 3.0))
    late = speed.measured("trl", "model", "batch")
    assert late.passed is None and late.why.startswith("stopped after 60 s: less than 2 tokens/s")  # 144 tokens
    raising(EngineError("the worker stopped with code 1:\ntorch.OutOfMemoryError: CUDA out of memory."))
    assert speed.measured("trl", "model", "batch") == Outcome(None, "ran out of the device's memory")
    with pytest.raises(EngineError):  # ours has no excuse
        speed.measured("rlhfctl", "head", "batch")


def test_weights_are_compared_tensor_by_tensor(tmp_path: Path) -> None:
    for name, value in (("one", 4.0), ("other", 5.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([value, 10.0]), "v": torch.ones(2)}, tmp_path / name / "model.safetensors")
    assert largest_difference(tmp_path / "one", tmp_path / "one") == 0.0
    assert largest_difference(tmp_path / "one", tmp_path / "other") == pytest.approx(0.1)
    save_file({"w": torch.ones(2)}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(AssertionError, match="other weights"):
        largest_difference(tmp_path / "one", tmp_path / "other")


def test_what_cannot_be_checked_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_stages.find_spec", lambda name: None)
    checked = Check(tmp_path, Budget(1))
    assert few_bits(checked, "4bit") == Outcome(None, "bitsandbytes is not installed")
    checked.on_gpu = False
    assert flash(checked) == Outcome(None, "flash attention needs a GPU")
    checked.on_gpu = True
    assert flash(checked) == Outcome(None, "the package flash_attn is not installed")
    assert [row.name for row in extra_rows(checked)] == ["8 bits", "4 bits", "flash attention"]
