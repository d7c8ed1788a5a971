"""What a run does stage by stage: data that a stage makes, a stage that waits for people, one look ahead.

A stage `asks` that the package does not have is put into the table, its module into a folder beside rlhfctl/stages: it
waits for a file of pairs, and hands them over as the rows that the reward stage reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import run_here
from stages_of_a_run import publish, recipe_at

import rlhfctl.stages
from rlhfctl import pipeline, stage_order
from rlhfctl.artifacts import load_artifact
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.dashboard.state import RunState
from rlhfctl.data import preflight
from rlhfctl.errors import GateClosed, HandoffError, RlhfctlError, WaitsForPeople
from rlhfctl.events import Event, Note, StageFinished, StageWaiting, Warned
from rlhfctl.graph import STAGES, Parent, Request, Stage
from rlhfctl.models import tokenizing
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe

LABEL = Stage(
    module="asks",
    section="model",
    makes="pairs",
    how_to_have="it is always there",
    asked=lambda recipe: recipe.reward is not None,
    parents={"base": Parent("base")},
    model=None,
    gives_rows=True,
)
MODULE = """
from rlhfctl.graph import Waiting

def run(section, ctx):
    answers = ctx.run.root.absolute().parent.parent / "answers.jsonl"
    with (ctx.work / "calls").open("a") as calls:
        calls.write("called\\n")
    if not answers.is_file():
        return Waiting("16 pairs are to be labelled", f"write them to {answers.name}")
    (ctx.folder / "pairs.jsonl").write_text(answers.read_text())
    calls = (ctx.work / "calls").read_text().count("called")
    return ctx.publish(section.model_dump(mode="json"), {"data": "pairs.jsonl"}, metrics={"calls": calls})
"""
RECIPE = """\
name: labelled
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 300, max_position_embeddings: 64}
data:
  demonstrations: {source: "builtin:reviews", rows: 24}
  preferences: {source: "stage:asks", heldout: 0.25}
sft:
  lora: null
  trainer: {max_steps: 1, per_device_train_batch_size: 4}
reward:
  lora: null
  trainer: {max_steps: 1, per_device_train_batch_size: 4}
"""
PAIRS = "".join(json.dumps({"prompt": f"{i} ?", "chosen": " yes", "rejected": " no"}) + "\n" for i in range(16))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe whose preferences come from `asks`, which stands before reward in the table."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "asks.py").write_text(MODULE)
    monkeypatch.setattr(rlhfctl.stages, "__path__", [*rlhfctl.stages.__path__, str(tmp_path / "modules")])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    before = dict(STAGES)
    STAGES.clear()
    for name, stage in before.items():
        STAGES.update({"asks": LABEL} if name == "reward" else {})
        STAGES[name] = stage
    yield tmp_path
    STAGES.clear()
    STAGES.update(before)
    monkeypatch.delattr(rlhfctl.stages, "asks", raising=False)


def carry_out(project: Path, request: Request, *overrides: str) -> list[Event]:
    events: list[Event] = []
    (project / "all" / "run").mkdir(parents=True, exist_ok=True)
    pipeline.run(load_recipe(project / "recipe.yaml", overrides), project / "all" / "run", request, events.append)
    return events


def forecasts(project: Path, *overrides: str) -> dict[str, tuple[str, str]]:
    planned = run_here("plan", "recipe.yaml", "--run-dir", "all/run", "--json", *overrides, cwd=project)
    assert planned.returncode == 0, planned.stderr
    return {stage["name"]: (stage["action"], stage["why"]) for stage in json.loads(planned.stdout)["stages"]}


def test_a_stage_waits_for_people_and_its_rows_are_read_when_they_are_there(project: Path) -> None:
    command = ("run", "recipe.yaml", "--run-dir", "all/run")
    waits = run_here(*command, cwd=project)
    assert waits.returncode == 7, waits.stderr
    assert waits.stderr == (
        "waiting: asks: 16 pairs are to be labelled\n"
        "  next: write them to answers.jsonl; then give the same command again\n"
    )
    assert "[asks] waiting: 16 pairs are to be labelled; write them to answers.jsonl" in waits.stdout
    run = project / "all" / "run"
    assert (run / "sft" / "manifest.json").is_file() and (run / "asks" / "work" / "calls").is_file()
    assert not (run / "reward").exists()

    # what looks at the run says that it waits
    records = list(read_events(run / "events.jsonl"))
    assert [one["message"] for one in records if one["event"] == "waiting"] == [
        "16 pairs are to be labelled; write them to answers.jsonl"
    ]
    state = RunState()
    for record in records:
        state.feed(record)
    assert state.over and state.stages["asks"].state == "waiting" and state.stages["reward"].state == "next"
    assert "16 pairs are to be labelled" in str(state.stopped)
    shown = run_here("show", "all/run", cwd=project).stdout
    assert "waiting" in shown and "16 pairs are to be labelled" in shown
    (listed,) = json.loads(run_here("runs", "all", "--json", cwd=project).stdout)
    assert (listed["state"], listed["stages"]["asks"]) == ("waiting", "waiting")
    planned = forecasts(project)
    assert planned["asks"] == ("wait", "16 pairs are to be labelled; write them to answers.jsonl")
    assert planned["reward"] == ("run", "on the new asks")
    assert run_here(*command, cwd=project).returncode == 7

    (project / "answers.jsonl").write_text(PAIRS)
    done = run_here(*command, cwd=project)
    assert done.returncode == 0, done.stderr
    made = load_artifact(run / "asks")
    assert made.manifest.metrics["calls"] == 3  # in the same work folder, which is gone now
    assert not (run / "asks" / "work").exists()
    reward = load_artifact(run / "reward").manifest
    assert reward.parents["asks"].fingerprint == made.fingerprint == reward.inputs["asks"]
    assert "data.preferences" in reward.inputs and reward.metrics["steps"] == 1
    assert {name: action for name, (action, _) in forecasts(project).items()} == dict.fromkeys(STAGES_HERE, "skip")

    # other rows reach what reads them, and nothing else
    (project / "answers.jsonl").write_text(PAIRS.replace("yes", "sure"))
    carry_out(project, Request(only="asks", force=True))
    assert forecasts(project)["reward"] == ("run", "changed: asks, data.preferences")
    assert forecasts(project)["sft"][0] == "skip"
    finished = [event for event in carry_out(project, Request()) if isinstance(event, StageFinished)]
    assert [(event.stage, event.skipped) for event in finished] == [("sft", True), ("asks", True), ("reward", False)]


STAGES_HERE = ("sft", "asks", "reward")


def test_until_and_from_take_any_stage_of_the_table(project: Path) -> None:
    with pytest.raises(WaitsForPeople):
        carry_out(project, Request(until="asks"))
    with pytest.raises(HandoffError, match=r"the stage at .*asks is incomplete"):
        carry_out(project, Request(start="reward"))
    (project / "answers.jsonl").write_text(PAIRS)
    assert carry_out(project, Request(start="asks", until="asks"))
    assert not (project / "all" / "run" / "reward").exists()
    (project / "all" / "run" / "asks" / "pairs.jsonl").write_text("altered")
    with pytest.raises(HandoffError, match=r"pairs.jsonl was altered after its stage finished"):
        carry_out(project, Request(start="reward"))


@pytest.mark.ci
def test_a_stage_left_as_it_is_has_not_changed_because_its_rows_were_made_by_another(project: Path) -> None:
    STAGES["again"] = replace(LABEL, parents={}, gives_rows=False)
    (project / "answers.jsonl").write_text(PAIRS)
    carry_out(project, Request())
    events = carry_out(project, Request(start="again", force=True))
    assert [event.message for event in events if isinstance(event, Warned)] == []


def test_validate_takes_a_stage_that_makes_rows(project: Path) -> None:
    checked = run_here("validate", "recipe.yaml", "--deep", cwd=project)
    assert checked.returncode == 0, checked.stderr
    assert "data.preferences: checked when asks has made it" in checked.stdout
    assert "(stages: sft, asks, reward)" in checked.stdout
    assert run_here("data", "recipe.yaml", cwd=project).returncode == 0


@pytest.mark.ci
def test_rows_are_encoded_once_and_those_of_a_stage_when_they_are_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[list[str]] = []
    tokenizers: list[str] = []
    check, prepare, load_for = preflight.check, tokenizing.prepare, tokenizing.load_for

    def counted(recipe: Any, data: Any, stages: Any, tokenizer: Any) -> Any:
        encoded.append(sorted(data))
        return check(recipe, data, stages, tokenizer)

    def prepared(*arguments: Any) -> Any:
        tokenizers.append("prepared")
        return prepare(*arguments)

    def loaded(*arguments: Any) -> Any:
        tokenizers.append("loaded")
        return load_for(*arguments)

    monkeypatch.setattr(preflight, "check", counted)
    monkeypatch.setattr(tokenizing, "prepare", prepared)
    monkeypatch.setattr(tokenizing, "load_for", loaded)
    (project / "answers.jsonl").write_text(PAIRS)
    carry_out(project, Request())
    assert encoded == [["demonstrations"], ["preferences"]]
    (project / "recipe.yaml").write_text(RECIPE.replace('"stage:asks"', "pairs.jsonl"))
    (project / "pairs.jsonl").write_text(PAIRS)
    encoded.clear()
    tokenizers.clear()
    carry_out(project, Request(force=True))
    assert encoded == [["demonstrations", "preferences"]]
    # Before the first stage, in sft, and in reward: the look ahead does not come again before reward.
    assert tokenizers == ["prepared", "prepared", "loaded"]


def test_a_fault_in_rows_that_a_stage_made_is_told_before_the_reader_begins(project: Path) -> None:
    (project / "answers.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(RlhfctlError, match=r"rows of data\.preferences cannot be used"):
        carry_out(project, Request())
    assert load_artifact(project / "all" / "run" / "asks") and not (project / "all" / "run" / "reward").exists()


def test_waiting_is_an_event_and_no_finish(project: Path) -> None:
    events: list[Event] = []
    (project / "all" / "run").mkdir(parents=True)
    with pytest.raises(WaitsForPeople) as caught:
        pipeline.run(load_recipe(project / "recipe.yaml"), project / "all" / "run", Request(), events.append)
    assert caught.value.exit_code == 7
    (waiting,) = [event for event in events if isinstance(event, StageWaiting)]
    assert waiting.stage == "asks"
    assert [event.stage for event in events if isinstance(event, StageFinished)] == ["sft"]
    assert not any(isinstance(event, Note) and "what was there is kept" in event.message for event in events)


@pytest.mark.parametrize(
    ("request_", "stops"),
    [
        (Request(), True),
        (Request(until="card"), True),
        (Request(start="compare"), True),  # the card is left as it is, and counts
        (Request(until="reward"), False),  # the card comes later
        (Request(only="ppo"), False),  # a single stage passes no gate
        (Request(only="card"), False),
    ],
)
def test_the_gate_is_passed_by_each_command_that_goes_beyond_the_card(
    request_: Request, stops: bool, tmp_path: Path
) -> None:
    loaded = recipe_at(tmp_path, "reward.gate={min_accuracy: 0.9, min_length_controlled_accuracy: null}")
    card = {"accuracy": {"value": 0.8, "ci95": [0.7, 0.9]}, "pairs": 50, "flags": []}
    (tmp_path / "run" / "card").mkdir(parents=True)
    (tmp_path / "run" / "card" / "card.json").write_text(json.dumps(card))
    publish(tmp_path / "run" / "card", layout={"card": "card.json"})
    stages = stage_order.in_order(loaded.recipe)
    work = pipeline._Run(loaded.recipe, RunPaths(tmp_path / "run"), request_, lambda event: None, None)
    work.chosen = stage_order.choose(stages, request_)
    stopped = []
    for stage in stages:
        try:
            pipeline._stop_at_gate(stage, stages, work)
        except GateClosed:
            stopped.append(str(stage))
    assert stopped == (["card"] if stops else [])
