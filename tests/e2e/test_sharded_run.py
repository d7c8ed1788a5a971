"""A run of two processes that divide the weights: the numbers of one process, and models that load anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, run_here
from transformers import AutoModelForCausalLM

from rlhfctl.artifacts import load_artifact, read_json
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.models import scoring
from rlhfctl.recipe.load import load_recipe

SETTINGS = ("ppo.total_episodes=48", "ppo.local_rollout_forward_batch_size=3", "ppo.learning_rate=1e-3", "ppo.use=best")
SETTINGS += ("model.init.hidden_size=64", "sft.trainer.logging_steps=1", "reward.trainer.logging_steps=1")
SETTINGS += ("sft.trainer.learning_rate=1e-3", "reward.trainer.learning_rate=1e-3")
TIMED = ("_s", "_per_s")


def carried_out(folder: Path, name: str, *more: str) -> Path:
    sets = [part for one in SETTINGS for part in ("--set", one)]
    result = run_here("run", "tiny.yaml", "--until", "ppo", "--run-dir", name, *sets, *more, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / name


def metrics(run: Path) -> dict[tuple[str, int, str], dict[str, float]]:
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for event in read_events(run / "events.jsonl"):
        if event["event"] == "metrics":
            numbers = {name: value for name, value in event["values"].items() if not name.endswith(TIMED)}
            found[event["stage"], event["step"], event["split"]] = numbers
    return found


def shares(run: Path) -> dict[str, float]:
    """The largest share of the weights that a process held in each stage, from the notes."""
    notes = [event for event in read_events(run / "events.jsonl") if event["event"] == "note"]
    told = {one["stage"]: one["message"] for one in notes if "of the weights" in one["message"]}
    return {stage: float(message.split("at most ")[1].split()[0]) for stage, message in told.items()}


@pytest.mark.slow
def test_two_processes_that_divide_the_weights_do_as_one(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert load_recipe(tmp_path / "tiny.yaml").recipe.launch is None
    one = metrics(carried_out(tmp_path, "one"))
    run = carried_out(tmp_path, "two", "--num-processes", "2", "--set", "launch.shard=true")
    two = metrics(run)
    assert one.keys() == two.keys() and {stage for stage, _, _ in two} == {"sft", "reward", "ppo"}
    assert [step for stage, step, split in two if stage == "ppo" and split == "train"] == [1, 2, 3]
    for key, numbers in one.items():
        assert two[key] == pytest.approx(numbers, abs=1e-4), key
    held = shares(run)
    assert held.keys() == {"sft", "reward", "ppo"} and all(0.5 <= share <= 0.6 for share in held.values()), held

    result = run_here("export", "two", "--to", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"
    recorded = read_json(load_artifact(run / "ppo").part("probes"))
    found = scoring.sequence_logprobs(model, recorded["rows"], model.config.pad_token_id)
    for row, expected in zip(found, recorded["logprobs"], strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
