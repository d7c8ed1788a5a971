"""What a stage depends on: a change reaches the stages whose results it would change, and no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stages_of_a_run import NAMES, publish, recipe_at

from rlhfctl.artifacts import Source, changed_inputs, load_artifact
from rlhfctl.graph import Request, stages_of
from rlhfctl.inputs import inputs_of, parents_of
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import LoadedRecipe


def plan(loaded: LoadedRecipe, run: Path, content: str = "") -> dict[str, dict[str, str]]:
    """stage -> its inputs, with what the earlier stages left as it is."""
    recipe = loaded.recipe
    data: dict[str, Any] = {
        name: SimpleNamespace(fingerprint=f"{name} {section.rows} {recipe.seed} {content}")
        for name in ("demonstrations", "preferences", "prompts")
        if (section := getattr(recipe.data, name)) is not None
    }
    return {name: inputs_of(StageId(1, name), recipe, RunPaths(run), data, Request()) for name in stages_of(recipe)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("sft.trainer.learning_rate=0.1", {"sft": ["section"]}),
        ("reward.trainer.learning_rate=0.1", {"reward": ["section"]}),
        ("ppo.kl_coef=0.2", {"ppo": ["section"]}),
        ("compare.samples_per_prompt=7", {"compare": ["section"]}),
        ("data.demonstrations.rows=21", {"sft": ["data.demonstrations"]}),
        ("data.preferences.heldout=0.3", {"reward": ["data.preferences"]}),
        ("data.preferences.label_noise=0.3", {"reward": ["data.preferences"]}),
        ("data.prompts.test=11", {"ppo": ["data.prompts"], "compare": ["data.prompts"]}),
        (
            "data_seed=1",
            {
                "sft": ["data.demonstrations"],
                "reward": ["data.preferences"],
                "ppo": ["data.prompts"],
                "compare": ["data.prompts"],
            },
        ),
        ("data.max_prompt_length=20", {"ppo": ["data.prompt_lengths"], "compare": ["data.prompt_lengths"]}),
        ("ppo.stop_strings=[x]", {"ppo": ["section"], "compare": ["sampling"]}),
        ("model.init.hidden_size=16", {"sft": ["model"]}),
        ("name=other", {}),
        ("report_to=[wandb]", {}),
    ],
)
def test_a_change_reaches_the_stages_that_depend_on_it_and_no_other(
    tmp_path: Path, change: str, expected: dict[str, list[str]]
) -> None:
    run = tmp_path / "run"
    for name in NAMES:
        publish(run / name)
    before, after = plan(recipe_at(tmp_path), run), plan(recipe_at(tmp_path, change), run)
    changed = {name: changed_inputs(before[name], after[name]) for name in NAMES}
    assert {name: inputs for name, inputs in changed.items() if inputs} == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("reward.gate={min_accuracy: 0.9}", {}),  # a threshold is no input of anything
        ("reward.card.samples=8", {"card": ["section"]}),
        ("reward.trainer.learning_rate=0.1", {"reward": ["section"]}),  # it reaches the card as its parent
        ("ppo.kl_coef=0.2", {"ppo": ["section"]}),
        ("ppo.temperature=0.9", {"card": ["sampling"], "ppo": ["section"]}),
        ("ppo.response_length=20", {"card": ["sampling"], "ppo": ["section"], "compare": ["section"]}),
        ("ppo.local_rollout_forward_batch_size=2", {"ppo": ["section"]}),
        ("data.preferences.heldout=0.3", {"reward": ["data.preferences"], "card": ["data.preferences"]}),
    ],
)
def test_what_the_card_depends_on_and_what_depends_on_it(
    tmp_path: Path, change: str, expected: dict[str, list[str]]
) -> None:
    run, names = tmp_path / "run", ["sft", "reward", "card", "ppo", "compare"]
    for name in names:
        publish(run / name)
    with_card = ("reward.card={}",)
    before, after = (plan(recipe_at(tmp_path, *with_card, *more), run) for more in ((), (change,)))
    changed = {name: changed_inputs(before[name], after[name]) for name in names}
    assert {name: inputs for name, inputs in changed.items() if inputs} == expected
    assert {"base", "reward"} <= before["card"].keys() and "card" not in before["ppo"]
    without = plan(recipe_at(tmp_path), run)  # a run made before there were cards stays as it is
    assert without == {name: inputs for name, inputs in before.items() if name != "card"}


@pytest.mark.parametrize(
    ("normalize", "change", "expected"),
    [
        (
            "demonstrations",
            "data.demonstrations.rows=21",
            {"sft": ["data.demonstrations"], "reward": ["data.demonstrations"]},
        ),
        ("demonstrations", "ppo.temperature=0.9", {"ppo": ["section"]}),
        ("reference", "data.demonstrations.rows=21", {"sft": ["data.demonstrations"]}),
        ("reference", "ppo.temperature=0.9", {"reward": ["sampling"], "ppo": ["section"]}),
        ("reference", "ppo.kl_coef=0.3", {"ppo": ["section"]}),
        (
            "reference",
            "data.max_prompt_length=20",
            {
                "reward": ["data.prompt_lengths"],
                "ppo": ["data.prompt_lengths"],
                "compare": ["data.prompt_lengths"],
            },
        ),
        (
            "reference",
            "data.prompts.test=11",
            {"reward": ["data.prompts"], "ppo": ["data.prompts"], "compare": ["data.prompts"]},
        ),
    ],
)
def test_what_a_normalized_reward_depends_on(
    normalize: str, change: str, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    run, setting = tmp_path / "run", f"reward.normalize={normalize}"
    for name in NAMES:
        publish(run / name)
    before, after = (plan(recipe_at(tmp_path, setting, *more), run) for more in ((), (change,)))
    changed = {name: changed_inputs(before[name], after[name]) for name in NAMES}
    assert {name: inputs for name, inputs in changed.items() if inputs} == expected


def test_a_reward_with_the_defaults_stated_is_the_reward_of_runs_before_there_were_losses(tmp_path: Path) -> None:
    for name in NAMES:
        publish(tmp_path / "run" / name)
    stated = ("reward.loss=bradley_terry", "reward.label_error=0", "reward.normalize=null")
    plain = recipe_at(tmp_path)
    assert plan(recipe_at(tmp_path, *stated), tmp_path / "run") == plan(plain, tmp_path / "run")
    assert plain.recipe.reward is not None
    assert not {"loss", "label_error", "normalize"} & plain.recipe.reward.model_dump().keys()
    for other in ("reward.loss=k_wise", "reward.label_error=0.1"):
        changed = plan(recipe_at(tmp_path, other), tmp_path / "run")["reward"]
        assert changed_inputs(plan(plain, tmp_path / "run")["reward"], changed) == ["section"]


def test_the_seed_edited_data_the_parents_and_an_edited_function_reach_their_stages(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in NAMES:
        publish(run / name)
    before = plan(recipe_at(tmp_path), run)
    assert plan(recipe_at(tmp_path), run) == before
    seeded = plan(recipe_at(tmp_path, "seed=1"), run)
    assert all("seed" in changed_inputs(before[name], seeded[name]) for name in NAMES)
    dtype = plan(recipe_at(tmp_path, "model.dtype=bfloat16"), run)
    assert all(changed_inputs(before[name], dtype[name]) == ["model"] for name in NAMES)

    other_rows = plan(recipe_at(tmp_path), run, "edited")
    assert {name: changed_inputs(before[name], other_rows[name]) for name in NAMES} == {
        "sft": ["data.demonstrations"],
        "reward": ["data.preferences"],
        "ppo": ["data.prompts"],
        "compare": ["data.prompts"],
    }

    publish(run / "sft", text="trained again")
    retrained = plan(recipe_at(tmp_path), run)
    assert {name: changed_inputs(before[name], retrained[name]) for name in NAMES} == {
        "sft": [],
        "reward": ["base"],
        "ppo": ["base"],
        "compare": ["reference"],
    }
    (tmp_path / "scores.py").write_text("def length(prompts, completions): return [0.0 for c in completions]\n")
    edited = plan(recipe_at(tmp_path), run)
    assert {name: changed_inputs(retrained[name], edited[name]) for name in NAMES} == {
        "sft": [],
        "reward": [],
        "ppo": [],
        "compare": ["functions"],
    }


def test_a_later_round_is_handed_its_own_stages_and_else_those_of_the_round_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sft = publish(run / "sft")
    for name in ("reward", "ppo"):
        publish(run / name, parents={"base": Source.of(sft)})
    second = publish(run / "round-2" / "reward", stage="round-2/reward", text="a", parents={"base": Source.of(sft)})
    (run / "recipe.yaml").write_text("name: plan\n")
    found = parents_of(StageId(2, "ppo"), recipe_at(tmp_path).recipe, RunPaths(run), Request())
    assert found["base"].name == str(run / "sft") and found["reward"].name == str(run / "round-2" / "reward")
    assert second.manifest.parents["base"].path == "sft"  # from the run's folder, so that a moved run stays whole
    run.rename(tmp_path / "moved")
    moved = load_artifact(tmp_path / "moved" / "round-2" / "reward")
    assert moved.parent("base").name == str(tmp_path / "moved" / "sft")
