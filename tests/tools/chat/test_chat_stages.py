"""Names of models in a chat, on runs whose stages are made up on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages_of_a_run import publish, recipe_at

from rlhfctl.artifacts import Artifact, Source
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.recipe.load import dump_recipe
from rlhfctl.tools.chat.stages import RunModels, reads_conversations

LAYOUT = {"model": "model"}


def new_run(folder: Path, *changes: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe_at(folder.parent, *changes).recipe))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose sft, reward and ppo are complete."""
    folder = new_run(tmp_path / "run")
    sft = publish(folder / "sft", layout=LAYOUT)
    reward = publish(folder / "reward", parents={"base": Source.of(sft)})
    parents = {"base": Source.of(sft), "reward": Source.of(reward)}
    publish(folder / "ppo", parents=parents, layout=LAYOUT, text="policy")
    return folder


def chosen(run: Path, name: str | None = None) -> tuple[str, Path]:
    choice = RunModels(run).choose(name)
    return choice.name, Path(choice.source.name)


def test_the_policy_answers_unless_another_model_is_named(run: Path) -> None:
    assert chosen(run) == ("ppo", run / "ppo")
    assert chosen(run, "sft") == ("sft", run / "sft")
    assert chosen(run, "reference") == ("reference", run / "sft")
    assert RunModels(run).names() == ["sft", "ppo", "reference"]


def test_a_later_round_comes_first(run: Path) -> None:
    sft = RunModels(run).choose("sft").source
    publish(run / "round-2" / "ppo", stage="round-2/ppo", parents={"base": sft}, layout=LAYOUT)
    assert chosen(run) == ("round-2/ppo", run / "round-2" / "ppo")
    assert chosen(run, "ppo") == ("ppo", run / "ppo")


def test_without_a_policy_base_answers(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(HandoffError, match="does not exist") as caught:
        RunModels(run).choose()
    assert "--until sft" in str(caught.value)
    publish(run / "sft", layout=LAYOUT)
    assert chosen(run) == ("sft", run / "sft")
    assert chosen(run, "reference") == ("reference", run / "sft")
    with pytest.raises(HandoffError, match="does not exist"):
        RunModels(run).choose("ppo")


def test_the_reference_is_the_model_that_the_policy_started_from(tmp_path: Path) -> None:
    run, base = new_run(tmp_path / "run"), tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    outside = Source(str(base), RunModels(run).choose(str(base)).source.fingerprint)
    publish(run / "ppo", parents={"base": outside}, layout=LAYOUT)
    assert chosen(run, "reference") == ("reference", base)
    assert RunModels(run).reward(RunModels(run).choose()) is None  # no reward model, and the recipe names none
    (base / "config.json").write_text('{"changed": 1}')
    with pytest.raises(HandoffError, match="has changed since"):
        RunModels(run).choose("reference")


def test_other_runs_and_models_are_named_by_their_folders(run: Path, tmp_path: Path) -> None:
    other = new_run(tmp_path / "other", "seed=7")
    publish(other / "sft", layout=LAYOUT)
    for name, stage in ((str(other), "sft"), (str(other / "sft"), "sft")):
        choice = RunModels(run).choose(name)
        assert (choice.name, Path(choice.source.name)) == (str(other / stage), other / stage)
        assert choice.recipe.seed == 7  # it is sampled as its own recipe says
    assert RunModels(run).choose("some/model").source.name == "some/model"
    with pytest.raises(RlhfctlError, match="no model 'polycy' in this run") as caught:
        RunModels(run).choose("polycy")
    assert "one of sft, ppo, reference" in str(caught.value)
    with pytest.raises(RlhfctlError, match=r"recipe\.yaml is missing"):
        RunModels(tmp_path)


def test_answers_are_scored_by_the_reward_that_the_policy_was_trained_on(run: Path) -> None:
    models = RunModels(run)
    for name in ("ppo", "sft"):
        source = models.reward(models.choose(name))
        assert source is not None and Path(source.name) == run / "reward"
    (run / "reward" / "model" / "weights").write_text("other")
    publish(run / "reward", parents={"base": models.choose("sft").source}, text="other")
    with pytest.raises(HandoffError, match="has changed since"):
        models.reward(models.choose("ppo"))


def recorded(run: Path, stage: str, file: str, value: Any, layout: dict[str, Any]) -> Artifact:
    (run / stage).mkdir(exist_ok=True)
    (run / stage / file).write_text(json.dumps(value) + "\n")
    return publish(run / stage, layout=layout)


TURNS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(("prompt", "conversations"), [("hi", False), (TURNS, True)])
def test_recorded_prompts_tell_whether_conversations_are_read(tmp_path: Path, prompt: Any, conversations: bool) -> None:
    run = new_run(tmp_path / "run", "data.demonstrations={source: other/set, as_conversations: true}")
    assert reads_conversations(RunModels(run))  # by the recipe, before anything is recorded
    recorded(run, "sft", "probes.json", {"rows": []}, {"probes": "probes.json"})
    recorded(run, "reward", "probes.json", {"examples": [{"prompt": prompt}]}, {"probes": "probes.json"})
    assert reads_conversations(RunModels(run)) is conversations
    other = "text" if conversations else TURNS
    recorded(run, "compare", "samples.jsonl", {"prompt": other}, {"samples": "samples.jsonl"})
    assert reads_conversations(RunModels(run)) is conversations  # the first stage that says it
    (run / "reward" / "probes.json").unlink()
    (run / "compare" / "samples.jsonl").write_text("damaged")
    assert reads_conversations(RunModels(run))


def test_the_built_in_task_is_of_texts(tmp_path: Path) -> None:
    assert not reads_conversations(RunModels(new_run(tmp_path / "a")))
    assert reads_conversations(RunModels(new_run(tmp_path / "b", "model.chat_template=chatml")))
