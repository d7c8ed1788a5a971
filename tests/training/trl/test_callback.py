"""What transformers' trainers do, as our events; the options under `trainer:`; and a terminal that stays ours."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from small_trainer import trainer
from transformers import TrainerControl, TrainerState, TrainingArguments

from rlhfctl.events import CheckpointSaved, Event, Metrics, Progress
from rlhfctl.training import checkpoints
from rlhfctl.training.trl.callback import CandidateCallback, EventCallback, last_metrics, trained_model
from rlhfctl.training.trl.options import prepare, steps_per_epoch

# ---------------------------------------------------------------- a training


def test_a_trainer_that_is_done_holds_neither_gradients_nor_optimizer(tmp_path: Path) -> None:
    ours = trainer(tmp_path / "work", lambda event: None)
    prepare(ours, tmp_path / "work", 4, lambda sentence: None)
    ours.train()
    assert ours.optimizer is not None
    held = [weakref.ref(value) for state in ours.optimizer.state.values() for value in state.values()]
    assert held and all(one() is not None for one in held)
    model = trained_model(ours)
    assert all(one() is None for one in held)
    assert all(parameter.grad is None for parameter in model.parameters())
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


class Seen:
    """Candidates that record the step, and the checkpoints that are there by then."""

    def __init__(self, every: int | None, work: Path) -> None:
        self.every, self.work = every, work
        self.steps: list[int] = []
        self.before: list[list[str]] = []

    def __call__(self, model: object, step: int, total: int) -> None:
        assert isinstance(model, torch.nn.Module) and total == 5
        self.steps.append(step)
        self.before.append(sorted(path.name for path in self.work.glob("checkpoint-*")))


@pytest.mark.parametrize(("every", "steps"), [(None, [2, 4, 5]), (3, [3, 5]), (1, [1, 2, 3, 4, 5])])
def test_candidates_are_seen_after_their_steps_and_the_last_before_its_checkpoint(
    tmp_path: Path, every: int | None, steps: list[int]
) -> None:
    work = tmp_path / "work"
    ours = trainer(work, lambda event: None, max_steps=5)  # two steps are an epoch
    prepare(ours, work, 1, lambda sentence: None)
    seen = Seen(every, work)
    ours.add_callback(CandidateCallback(seen, steps_per_epoch(ours)))
    ours.train()
    assert seen.steps == steps
    for step, before in zip(seen.steps, seen.before, strict=True):
        assert f"checkpoint-{step}" not in before


def test_a_training_of_four_steps_as_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    work = tmp_path / "work"
    ours = trainer(work, events.append, eval_strategy="steps", eval_steps=2)
    warned: list[str] = []
    assert prepare(ours, work, 2, warned.append) is None
    capsys.readouterr()
    ours.train()
    assert capsys.readouterr().out == ""  # no dictionary of metrics printed
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.stage, event.step, event.total) for event in steps] == [("sft", n, 4) for n in (1, 2, 3, 4)]
    assert steps[-1].eta_s == 0 and all(event.eta_s is not None and event.eta_s > 0 for event in steps[:-1])
    metrics = [event for event in events if isinstance(event, Metrics)]
    assert [(event.step, event.split) for event in metrics] == [
        (1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"), (4, "eval")
    ]  # fmt: skip
    logged = [entry for entry in ours.state.log_history if "loss" in entry]
    assert [event.values["the_loss"] for event in metrics if event.split == "train"] == [e["loss"] for e in logged]
    assert "eval_loss" in metrics[2].values
    for event in metrics:
        assert not [
            name for name in event.values if name.endswith(("_runtime", "_per_second", "flos")) or name == "epoch"
        ]
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    assert [event.step for event in saved] == [2, 4]
    newest, passed_over = checkpoints.newest_complete(work)
    assert newest is not None and (newest.step, str(newest.path)) == (4, saved[-1].path) and passed_over == []
    assert last_metrics(ours.state.log_history, ("loss", "nothing")) == {"loss": logged[-1]["loss"]}
    # Going on from step 2: time left is counted from there.
    events.clear()
    again = trainer(work, events.append)
    resume = prepare(again, work, 2, warned.append)
    assert resume is not None and resume.step == 4 and warned == []
    again.train(resume_from_checkpoint=saved[0].path)
    assert [event.step for event in events if isinstance(event, Progress)] == [3, 4]


def test_the_closing_summary_is_not_a_metric(tmp_path: Path) -> None:
    events: list[Event] = []
    callback = EventCallback("sft", events.append, tmp_path)
    state, arguments = TrainerState(global_step=4, max_steps=4), TrainingArguments(output_dir=str(tmp_path))
    callback.on_log(arguments, state, TrainerControl(), logs={"train_loss": 1.0, "train_runtime": 2.0})
    assert events == []
