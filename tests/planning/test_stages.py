"""The prediction of one stage: rows, steps, tokens, memory."""

from __future__ import annotations

from pathlib import Path

from small_plans import planned
from torch import nn

from rlhfctl.graph import Request
from rlhfctl.planning.stages import optimizer_state


def test_ppo_counts_updates_and_tokens(tiny_recipe: Path) -> None:
    new = planned(tiny_recipe, tiny_recipe.parent / "nothing")
    ppo = next(stage for stage in new.stages if stage.name == "ppo")
    assert (ppo.steps, ppo.tokens, ppo.rows) == (2, 32 * 12, "42 prompts, 32 episodes")


def test_compare_says_how_many_questions_go_where(tiny_recipe: Path) -> None:
    endpoint = "compare.endpoint={base_url: 'https://judge.example/v1', model: judge-1}"
    new = planned(tiny_recipe, tiny_recipe.parent / "nothing", "compare.judges=[gold, endpoint]", endpoint)
    compare = next(stage for stage in new.stages if stage.name == "compare")
    assert compare.rows.endswith("; up to 24 questions to judge-1 at judge.example")  # 12 prompts, both orders


def test_an_optimizers_state() -> None:
    weight = nn.Parameter(nn.Linear(4, 8).weight.detach())
    sizes = {name: optimizer_state(name)(weight) for name in ("adamw_torch_fused", "adamw_8bit", "lion_32bit", "sgd")}
    assert sizes == {"adamw_torch_fused": 256, "adamw_8bit": 64, "lion_32bit": 128, "sgd": 0}


def test_trl_is_not_foreseen(tiny_recipe: Path, tiny_run: Path) -> None:
    found = planned(tiny_recipe, tiny_run, "ppo.engine=trl", request=Request(start="ppo", until="ppo"))
    ppo = next(stage for stage in found.stages if stage.name == "ppo")
    assert ppo.outlook is None and ppo.note == "TRL's PPOTrainer is not modelled: --probe measures it"
