"""Turn the callbacks of transformers' trainers into rlhfctl events: steps, metrics, evaluations, checkpoints.

Also marks each checkpoint complete once it is written, and frees the optimizer of a finished trainer. The trainers'
options are in options.py; quiet.py keeps the libraries' output out of the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhfctl.events import CheckpointSaved, Event, Metrics, Progress, Work
from rlhfctl.models import devices
from rlhfctl.models.processes import Processes
from rlhfctl.training import checkpoints

KEPT_CHECKPOINTS = 2  # a kill may leave the newest one incomplete
# transformers adds these to its logs; they are rates over the whole call, wrong after a resume.
NOT_METRICS = {"total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "epoch"}


class EventCallback(TrainerCallback):
    """Emit progress, metrics and checkpoints of one trainer, and mark its checkpoints complete."""

    def __init__(
        self,
        stage: str,
        emit: Callable[[Event], None],
        work: Path,
        rename: Mapping[str, str] | None = None,
        unit: str = "step",
    ) -> None:
        self.stage = stage
        self.emit = emit
        self.work = work
        self.rename = dict(rename or {})
        self.unit = unit
        self._began: tuple[float, int] | None = None
        self._evaluating: tuple[Work, int] | None = None  # and the number of finished batches
        self._stepped = False

    @property
    def stepped(self) -> bool:
        """Tell whether one step is done: an option that cannot be used fails before that."""
        return self._stepped

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = (time.monotonic(), state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stepped = True
        left = self._seconds_left(state)
        step, total = state.global_step, state.max_steps
        self.emit(Progress(stage=self.stage, step=step, total=total, unit=self.unit, eta_s=left))

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        work, done = self._evaluating or (Work("evaluating", len(eval_dataloader), "batch"), 0)
        work.advance(done + 1)
        self._evaluating = work, done + 1

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._evaluating is not None:
            self._evaluating[0].close()
            self._evaluating = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float) and k not in NOT_METRICS}
        split = "eval" if any(key.startswith("eval_") for key in numbers) else "train"
        rates = ("_runtime", "_per_second")
        numbers = {self.rename.get(key, key): value for key, value in numbers.items() if not key.endswith(rates)}
        if "train_loss" in numbers:  # the closing summary; the last step has been reported already
            return
        self.emit(
            Metrics(
                stage=self.stage,
                step=state.global_step,
                total=state.max_steps,
                values=numbers,
                split=split,
                eta_s=self._seconds_left(state),
            )
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = self.work / f"{checkpoints.PREFIX}{state.global_step}"
        processes = Processes.here()
        processes.wait()  # each process writes its random states
        if not processes.first:
            return
        checkpoints.mark_complete(folder)
        self.emit(CheckpointSaved(stage=self.stage, step=state.global_step, path=str(folder)))

    def _seconds_left(self, state: TrainerState) -> float | None:
        if self._began is None or state.global_step <= self._began[1]:
            return None
        rate = (time.monotonic() - self._began[0]) / (state.global_step - self._began[1])
        return rate * (state.max_steps - state.global_step)


class Candidates(Protocol):
    """What looks at the weights after every `every` steps (None: an epoch), and after the last one."""

    every: int | None

    def __call__(self, model: Any, step: int, total: int, /) -> None:
        """Look at the weights of `model` after `step` of `total` steps. It may be called again after a resume."""


class CandidateCallback(TrainerCallback):
    """Show the weights to `candidates`. The trainer writes a checkpoint of the same step after that."""

    def __init__(self, candidates: Candidates, epoch: int) -> None:
        self.candidates = candidates
        self.every = candidates.every or epoch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        step, total = state.global_step, state.max_steps
        if step % self.every == 0 or step == total:
            self.candidates(model, step, total)


def trained_model(trainer: Trainer) -> Any:
    """Take the model out of a finished trainer, and free the memory of its optimizer and gradients."""
    model = trainer.model
    trainer.accelerator.free_memory()
    trainer.optimizer = trainer.lr_scheduler = trainer.model = trainer.model_wrapped = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    devices.release_memory()
    return model


def last_metrics(history: list[dict[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Take the last logged value of each of `names`. The history is saved in checkpoints, so resumed runs have it."""
    values: dict[str, float] = {}
    for entry in history:
        values |= {name: float(entry[name]) for name in names if name in entry}
    return values
