"""A worker measures this engine with each kind of critic."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.tools.bench import bench, inputs
from rlhfctl.tools.bench.workers import Job, run_rlhfctl
from rlhfctl.tools.bench.workload import comparable, recipe_workload


@pytest.mark.parametrize(
    ("critic", "lora"), [("adapter", True), ("head", True), ("model", True), ("head", False), ("model", False)]
)
def test_each_critic_is_measured(tiny_recipe: Path, tmp_path: Path, critic: str, lora: bool) -> None:
    work = recipe_workload(str(tiny_recipe))
    ppo = work.ppo if lora else work.ppo.model_copy(update={"lora": None})
    inputs.prepare(work, comparable(ppo, 1, critic), tmp_path)
    run = run_rlhfctl(Job.load(tmp_path))
    assert len(run["updates"]) == 1
    assert not run["recomputes"]
    found = bench.summarise([run], rate=1e12)
    assert found["episodes_per_s"] > 0
    # All weights: policy with gradients and two moments, reference, reward model, and the critic like the policy.
    whole = {"head": 4 + 1 + 1, "model": 4 + 1 + 1 + 4}
    if not lora:  # scorers have no output head
        assert whole[critic] - 1.5 < found["base_models"] <= whole[critic] + 0.1
