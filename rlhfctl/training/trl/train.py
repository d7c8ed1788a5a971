"""Train a model with one of TRL's trainers: resume from a checkpoint, report events, free the optimizer.

The sft and reward stages share this code. It reads and writes checkpoints in the stage's work folder. The stages save
the final model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from rlhfctl.events import Event, Note, StageStarted, Work
from rlhfctl.models import build, sharding
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Trained
from rlhfctl.training.trl import options
from rlhfctl.training.trl.callback import CandidateCallback, Candidates, EventCallback, last_metrics, trained_model
from rlhfctl.training.trl.divided import divide, reunite


def train(
    make_trainer: Callable[..., Trainer],
    model: Any,
    section: Trained,
    *,
    stage: str,
    work: Path,
    emit: Callable[[Event], None],
    warn: Callable[[str], None],
    counts: Callable[[Trainer], Mapping[str, int]],
    metrics: Sequence[str],
    divided: bool = False,
    candidates: Sequence[Candidates] = (),
) -> tuple[Any, dict[str, float]]:
    """Train `model`, or resume its training. Return it without its optimizer, and the last value of each of `metrics`.

    `make_trainer` receives the model and the callbacks. `counts` gives the numbers of rows, which are reported as
    settings in the event at the start. `divided`: the processes divide the weights while they train. `candidates` look
    at the weights after some of the steps, before a checkpoint of the same step is written.
    """
    processes = Processes.here()
    divided = divided and processes.count > 1
    if divided:
        divide(model)
        emit(Note(stage=stage, message=sharding.told([model])))
    callback = EventCallback(stage, emit, work)
    naming = options.naming_options(stage, section.trainer)
    with build.preserve_dtypes(model), naming, Work("preparing the batches"):
        trainer = make_trainer(model=model, callbacks=[callback])
    resume = options.prepare(trainer, work, section.checkpoint_steps, warn)
    for one in candidates:
        trainer.add_callback(CandidateCallback(one, options.steps_per_epoch(trainer)))

    trainable, total = build.count_parameters(trainer.model)
    settings = options.effective_settings(trainer.args, section.trainer)
    settings |= {
        **counts(trainer),
        "trainable_parameters": trainable,
        "parameters": total,
    } | processes.settings()
    steps, step = options.planned_steps(trainer), resume.step if resume else None
    emit(StageStarted(stage=stage, total_steps=steps, resumed_from=step, settings=settings))
    with options.naming_options(stage, section.trainer, lambda: resume is not None or callback.stepped):
        trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
    values = last_metrics(trainer.state.log_history, metrics)
    values["steps"] = trainer.state.global_step
    model = trained_model(trainer)
    if divided:
        reunite(model)
    return model, values
