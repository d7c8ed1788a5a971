"""Judges: how many responses they score at a time, and which judge is independent of the reward of PPO."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from comparisons import invoke, report_of

from rlhfctl.artifacts import load_artifact, resolve_source
from rlhfctl.events import Event
from rlhfctl.models import tokenizing
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Compare
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.model import ModelReward
from rlhfctl.stages.context import Context
from rlhfctl.stages.judges import build_judges

EPISODES = [Episode([5, 6], [7, 8 + n], "a", "b", {}) for n in range(7)]
SCORES = """
sizes = []

def score(prompts, completions):
    sizes.append(len(completions))
    return [1.0] * len(completions)
"""


def judges(run: Path, folder: Path, size: int) -> dict[str, Any]:
    (folder / "counting.py").write_text(SCORES)
    recipe = load_recipe(run / "recipe.yaml").recipe.model_copy(update={"folder": str(folder)})
    parents = {"reward": resolve_source(str(run / "reward"), "reward")}
    events: list[Event] = []
    ctx = Context("compare", recipe, RunPaths(run), parents, {}, {}, events.append)
    section = Compare(judges=["gold", "reward_model", "counting:score"], batch_size=size)
    return build_judges(section, ctx, tokenizing.load_tokenizer(str(run / "sft" / "model")))


@pytest.mark.parametrize(("size", "calls"), [(3, [3, 3, 1]), (64, [7])])
def test_batch_size_bounds_what_judges_score_at_a_time(
    tiny_run: Path, tmp_path: Path, size: int, calls: list[int]
) -> None:
    found = judges(tiny_run, tmp_path, size)
    model, function = found["reward_model"], found["counting:score"]
    assert isinstance(model, ModelReward) and isinstance(function, FunctionReward)
    sizes: list[int] = []
    model.model.score.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))  # type: ignore
    assert len(model(EPISODES)) == len(function(EPISODES)) == 7
    assert sizes == calls
    assert function.function.__globals__["sizes"] == calls  # type: ignore[attr-defined]


def test_only_the_reward_model_that_was_trained_against_is_dependent(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    result = invoke("reward", tiny_run.parent / "tiny.yaml", "--run-dir", tmp_path / "other", "--policy",
        tiny_run / "sft", "--set", "seed=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for judge, independent in ((tmp_path / "other" / "reward", True), (tiny_run / "reward", False)):
        result = invoke(
            "compare", tiny_run.parent / "tiny.yaml", "--run-dir", run, "--reward-model", judge,
            "--set", "compare.primary_judge=reward_model",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert report_of(run)["independent"] is independent
        notes = load_artifact(run / "compare").manifest.notes
        assert any("the reward model that PPO trained against" in note for note in notes) is not independent
