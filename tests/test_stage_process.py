"""A stage in a process of its own does what it does in the pipeline's: the same artifact, events and errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfctl import pipeline
from rlhfctl.artifacts import load_artifact
from rlhfctl.errors import DataError, DataFaults, HandoffError, Problem, RecipeError, RewardFailed, RlhfctlError
from rlhfctl.events import CheckpointSaved, Event, Metrics, StageFinished, StageStarted
from rlhfctl.graph import Request
from rlhfctl.launching import Launcher
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stage_process import _error_of, _error_record

RECIPE = """\
name: launched
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 300, max_position_embeddings: 64}
data:
  demonstrations: {source: "builtin:reviews", rows: 24}
  prompts: {source: prompts.jsonl, eval: 2, test: 2}
sft:
  lora: null
  checkpoint_steps: 1
  trainer: {max_steps: 2, per_device_train_batch_size: 4}
reward: {function: "scores:score"}
ppo:
  lora: null
  total_episodes: 16
  per_device_train_batch_size: 8
  num_mini_batches: 1
  response_length: 4
"""
FAILING = "def score(prompts, completions): raise ConnectionError('no answer')\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "scores.py").write_text(FAILING)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{i} ?"}) + "\n" for i in range(16)))
    return tmp_path


def carry_out(project: Path, run: str, request: Request, launcher: Launcher | None) -> list[Event]:
    events: list[Event] = []
    (project / run).mkdir(exist_ok=True)
    pipeline.run(load_recipe(project / "recipe.yaml"), project / run, request, events.append, launcher)
    return events


def told(events: list[Event]) -> list[object]:
    """What training said: steps and numbers, without times and folders."""
    kinds = (StageStarted, Metrics, CheckpointSaved, StageFinished)
    return [
        (event.kind, getattr(event, "step", None), getattr(event, "values", None))
        for event in events
        if isinstance(event, kinds)
    ]


@pytest.mark.ci
def test_a_launched_stage_makes_the_same_and_fails_the_same(project: Path) -> None:
    here = carry_out(project, "here", Request(until="sft"), None)
    there = carry_out(project, "there", Request(until="sft"), Launcher())
    made, launched = (load_artifact(project / run / "sft").manifest for run in ("here", "there"))
    assert launched.outputs == made.outputs and launched.inputs == made.inputs
    assert launched.metrics == made.metrics and launched.notes == made.notes
    assert told(there) == told(here)
    (finished,) = [event for event in there if isinstance(event, StageFinished)]
    assert finished.peak_memory is not None and finished.peak_memory > 10_000_000
    assert not (project / "there" / "sft" / "work").exists()

    raised = []
    for run, launcher in (("here", None), ("there", Launcher())):
        with pytest.raises(RewardFailed) as caught:
            carry_out(project, run, Request(start="ppo"), launcher)
        raised.append(caught.value)
        assert (project / run / "ppo" / "work" / "failed-function.json").is_file()
    assert str(raised[0]) == str(raised[1]) and "ConnectionError: no answer" in str(raised[0])
    assert raised[0].exit_code == raised[1].exit_code == 6


@pytest.mark.ci
def test_only_the_first_of_several_processes_speaks_and_publishes(project: Path) -> None:
    second = Launcher(("env", "RANK=1", sys.executable))
    events: list[Event] = []
    (project / "run").mkdir()
    with pytest.raises(RlhfctlError, match=r"the process of the stage sft ended \(exit code 0\) before it said why"):
        pipeline.run(load_recipe(project / "recipe.yaml"), project / "run", Request(until="sft"), events.append, second)
    assert not any(isinstance(event, StageStarted | Metrics | StageFinished) for event in events)
    folder = project / "run" / "sft"
    assert [path.name for path in folder.iterdir()] == ["work"]  # no model, no recorded outputs, no manifest
    assert list((folder / "work" / "process-1").iterdir()) == []  # it left after training, before anything is saved
    names = sorted(path.name for path in (folder / "work" / "process").iterdir())
    assert names == ["process-1.log", "task.json"]  # no events, no result


def test_a_process_that_dies_is_an_error_that_says_where_to_look(project: Path) -> None:
    with pytest.raises(RlhfctlError, match=r"ended \(exit code 3\) before it said why") as caught:
        carry_out(project, "run", Request(until="sft"), Launcher(("sh", "-c", "exit 3")))
    assert str(caught.value.where).endswith("libraries.log") and "resumes" in str(caught.value.fix)


def test_a_stage_ends_with_the_pipeline_that_started_it(project: Path) -> None:
    with pytest.raises(RlhfctlError):  # leaves a task without a result
        carry_out(project, "run", Request(until="sft"), Launcher(("sh", "-c", "exit 3")))
    command = [sys.executable, "-m", "rlhfctl.stage_process", str(project / "run"), "sft"]
    alone = subprocess.run(command, input=b"", capture_output=True, timeout=120, check=False)
    assert alone.returncode == 1
    assert not (project / "run" / "sft" / "manifest.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        HandoffError("gone", where="run/sft", fix="run it again"),
        RewardFailed("it failed"),
        DataFaults([DataError("bad", where="a.jsonl:1"), DataError("worse", fix="mend it")]),
        RecipeError([Problem("ppo.kl_coef", "is odd", where="r.yaml:3", fix="use 0.1"), Problem("sft", "too")]),
        OSError(28, "No space left on device", "run/sft"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_on_the_other_side(error: Exception) -> None:
    again = _error_of(json.loads(json.dumps(_error_record(error))))
    assert type(again) is type(error) and str(again) == str(error)
    assert getattr(again, "exit_code", None) == getattr(error, "exit_code", None)
    if isinstance(error, RecipeError) and isinstance(again, RecipeError):
        assert [dataclasses.asdict(one) for one in again.problems] == [
            dataclasses.asdict(one) for one in error.problems
        ]


def test_an_unexpected_error_brings_its_traceback() -> None:
    try:
        raise KeyError("a defect")
    except KeyError as error:
        record = _error_record(error)
    assert "KeyError: 'a defect'" in str(_error_of(record)) and __file__ in str(_error_of(record))
