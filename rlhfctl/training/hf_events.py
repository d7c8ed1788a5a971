"""The bridge from transformers' trainers to our events: steps, metrics, checkpoints and their marks.

Also the arguments that rlhfctl sets for SFTTrainer and RewardTrainer alike, and what keeps the libraries' own prints
and warnings out of the terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import math
import os
import re
import sys
import time
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhfctl.errors import Problem, RecipeError
from rlhfctl.events import CheckpointSaved, Event, Metrics, Progress, Work
from rlhfctl.recipe.words import describe, did_you_mean
from rlhfctl.training import checkpoints, loading, models, peak

CHECKPOINTS_A_STAGE = 10  # where the recipe names no checkpoint_steps
KEPT_CHECKPOINTS = 2  # the newest may be the one that a kill tears
# Numbers that the trainers take without a look and then divide by, count with or never end on: [lowest, below).
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, math.inf)),
    **dict.fromkeys(("gradient_accumulation_steps", "max_length", "eval_accumulation_steps"), (1, math.inf)),
    **dict.fromkeys(("dataset_num_proc", "eval_steps"), (1, math.inf)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "adam_epsilon"), (0, math.inf)),
    **dict.fromkeys(("neftune_noise_alpha", "dataloader_num_workers", "logging_steps"), (0, math.inf)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), (0, 1)),
    "max_steps": (-1, math.inf),
    "center_rewards_coefficient": (0, math.inf),
}
_ABOVE_0 = ("num_train_epochs",)
# transformers adds these to its logs; they are rates over the whole call, wrong after a resume.
NOT_METRICS = {"total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "epoch"}


class EventCallback(TrainerCallback):
    """Emits progress, metrics and checkpoints of one trainer, and marks its checkpoints complete."""

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
        self._evaluating: tuple[Work, int] | None = None  # and how many batches are done
        self._stepped = False

    @property
    def stepped(self) -> bool:
        """Whether a step is done: options that cannot be used show before that."""
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
        work.at(done + 1)
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
        checkpoints.mark_complete(folder)
        self.emit(CheckpointSaved(stage=self.stage, step=state.global_step, path=str(folder)))

    def _seconds_left(self, state: TrainerState) -> float | None:
        if self._began is None or state.global_step <= self._began[1]:
            return None
        rate = (time.monotonic() - self._began[0]) / (state.global_step - self._began[1])
        return rate * (state.max_steps - state.global_step)


def common_arguments(work: Path, *, seed: int) -> dict[str, Any]:
    """What rlhfctl owns in SFTConfig and RewardConfig: where, seeds, checkpoints, reporting (tools/trackers.py)."""
    return {
        "output_dir": str(work),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_total_limit": KEPT_CHECKPOINTS,
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": loading.device().type == "cuda",
    }


def planned_steps(trainer: Trainer) -> int:
    """Optimizer steps of the whole training, as transformers will count them."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = len(trainer.get_train_dataloader())
    a_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * a_epoch)


def prepare(
    trainer: Trainer, work: Path, checkpoint_steps: int | None, warn: Callable[[str], None]
) -> checkpoints.Checkpoint | None:
    """Set how often the trainer saves, silence its printer, and find the checkpoint to go on from.

    Warns of weights that the learning rate cannot move.
    """
    trainer.remove_callback(PrinterCallback)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    if sentence := models.rounds_away(trained, trainer.args.learning_rate):
        warn(sentence)
    trainer.args.save_steps = checkpoint_steps or max(1, math.ceil(planned_steps(trainer) / CHECKPOINTS_A_STAGE))
    resume, passed_over = checkpoints.newest_complete(work)
    for sentence in passed_over:
        warn(sentence)
    return resume


def trained_model(trainer: Trainer) -> Any:
    """The model of a trainer that is done, its optimizer gone as gradients are: what follows needs the memory."""
    model = trainer.model
    trainer.accelerator.free_memory()
    trainer.optimizer = trainer.lr_scheduler = trainer.model = trainer.model_wrapped = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    peak.give_back()
    return model


def last_metrics(history: list[dict[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """The last logged value of each name that was logged (the history is part of a checkpoint, so resumes keep it)."""
    found: dict[str, float] = {}
    for entry in history:
        found |= {name: float(entry[name]) for name in names if name in entry}
    return found


def trainer_arguments(work: Path, dtype: str, given: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """All that SFTConfig or RewardConfig is made with: our defaults, what the recipe gives, what rlhfctl owns."""
    on_gpu = loading.device().type == "cuda"
    return trainer_defaults(dtype, on_gpu) | dict(given) | common_arguments(work, seed=seed)


def trainer_defaults(dtype: str, on_gpu: bool) -> dict[str, Any]:
    """Defaults where TRL's own would surprise: mixed bf16 on a GPU only, gradient checkpointing only when asked."""
    return {"bf16": on_gpu and dtype != "float16", "gradient_checkpointing": False}


def check_trainers(sections: Mapping[str, Mapping[str, Any]], dtype: str = "float32") -> None:
    """RecipeError for every wrong option under any stage's `trainer:` (stage name -> options), all in one message.

    Options that are right one by one are also given to TRL's
    configuration together, which knows names (of optimizers, say) and combinations.
    """
    from trl import RewardConfig, SFTConfig

    problems: list[Problem] = []
    for name, config in (("sft", SFTConfig), ("reward", RewardConfig)):
        given = sections.get(name, {})
        try:
            check_trainer_keys(name, given, config)
            if given:
                owned = common_arguments(Path(), seed=0)
                with naming_options(name, given):
                    config(**trainer_defaults(dtype, loading.device().type == "cuda") | dict(given) | owned)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)


_REFUSALS = (
    *(ValueError, TypeError, ImportError, AttributeError, AssertionError, ArithmeticError, LookupError),
    *(NotImplementedError, FileNotFoundError),
)


@contextlib.contextmanager
def naming_options(stage: str, given: Mapping[str, Any], done: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Where TRL or transformers refuse the options `given` under `trainer:`, say so.

    Refusals are the exceptions of libraries that look at their arguments, before the first step is `done`. Without
    options such an exception is a defect, and goes on as it is. Its traceback is kept in libraries.log.
    """
    try:
        yield
    except _REFUSALS as error:
        if not given or done():
            raise
        logging.getLogger("transformers").warning("options that cannot be used", exc_info=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        quoted = [key for key, value in given.items() if re.search(rf"\b{key}\b|'{re.escape(str(value))}'", lines[0])]
        key = f"{stage}.trainer" + (f".{quoted[0]}" if len(quoted) == 1 else "")
        options = ", ".join(given)
        fix = None if len(quoted) == 1 else f"the options given are {options}"
        raise RecipeError([Problem(key, f"cannot be used: {lines[0]}", fix=fix)]) from error


def check_trainer_keys(section: str, given: Mapping[str, Any], config_class: type[Any]) -> None:
    """RecipeError for keys under `trainer:` that the installed TRL does not know, or values of the wrong kind."""
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    hints = typing.get_type_hints(config_class)
    problems = []
    for key, value in given.items():
        if key not in fields:
            problems.append(
                Problem(
                    f"{section}.trainer.{key}", f"{config_class.__name__} has no such option{did_you_mean(key, fields)}"
                )
            )
        elif not _fits(value, hints.get(key, Any)):
            what = f"expected {_describe(hints[key])}, got {describe(value)}"
            problems.append(Problem(f"{section}.trainer.{key}", what))
        elif (words := _out_of_bounds(key, value)) is not None:
            problems.append(Problem(f"{section}.trainer.{key}", f"must be {words}, got {value}"))
    if problems:
        raise RecipeError(problems)


def _out_of_bounds(key: str, value: object) -> str | None:
    """What the value must be, where it is a number that no training can use."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return "a finite number"
    lowest, below = _BOUNDS.get(key, (-math.inf, math.inf))
    if value < lowest:
        return f"at least {lowest}"
    return f"below {below}" if value >= below else "greater than 0" if key in _ABOVE_0 and value <= 0 else None


def _fits(value: object, hint: Any) -> bool:
    """Whether a YAML value can be meant by a dataclass field's annotation; in doubt, yes."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in _meant(hint))
    if hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str or (isinstance(hint, type) and issubclass(hint, str)):
        return isinstance(value, str)
    if hint in (dict, list) or origin in (dict, list):
        return isinstance(value, origin or hint)
    return True


def _meant(hint: Any) -> list[Any]:
    """The parts of a union; text beside an enumeration is the name of one of its members."""
    parts = list(typing.get_args(hint))
    named = any(isinstance(part, type) and issubclass(part, enum.Enum) for part in parts)
    return [part for part in parts if not (named and part is str)]


_WORDS = {type(None): "null", int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _describe(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is typing.Literal:
        return ", ".join(repr(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in _meant(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(repr(member.value) for member in hint)
    return str(hint if parts else getattr(hint, "__name__", hint)).replace("typing.", "")


def effective_settings(args: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the trainer will use them: the given ones, and those that everyone asks about."""
    names = [
        "learning_rate",
        "lr_scheduler_type",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "bf16",
        "gradient_checkpointing",
        "save_steps",
        "seed",
        *given,
    ]
    shown = {}
    for name in dict.fromkeys(names):
        value = getattr(args, name, None)
        value = value.value if isinstance(value, enum.Enum) else value  # "linear", not SchedulerType.LINEAR
        shown[name] = value if isinstance(value, bool | int | float | str | type(None)) else str(value)
    return shown


@contextlib.contextmanager
def quiet_libraries(log: Path) -> Iterator[None]:
    """Send what the libraries print, warn and log to `log`, without progress bars; our listeners are not touched."""
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with log.open("a", encoding="utf-8", buffering=1) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        library_loggers = [
            logging.getLogger(name) for name in ("transformers", "datasets", "trl", "accelerate", "peft")
        ]
        before = [(logger, list(logger.handlers), logger.propagate) for logger in library_loggers]
        root.addHandler(handler)
        for logger in library_loggers:
            logger.handlers = []
            logger.propagate = True
        shown = warnings.showwarning  # the command line may have captured warnings already
        logging.captureWarnings(True)
        bars = transformers.utils.logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(stream), _stderr_to(stream):
                warnings.simplefilter("default")
                yield
        finally:
            logging.captureWarnings(False)
            if shown.__module__ == logging.__name__:
                logging.captureWarnings(True)
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            root.removeHandler(handler)
            if bars[0]:
                transformers.utils.logging.enable_progress_bar()
            if not bars[1]:
                datasets.enable_progress_bars()


@contextlib.contextmanager
def telling_libraries() -> Iterator[None]:
    """transformers' loading and writing of weights as work that says how far it is, in place of its own bars."""
    set_hook = getattr(transformers.utils.logging, "set_tqdm_hook", None)
    if set_hook is None:  # a release that has none: its loading is silent
        yield
        return
    before = set_hook(_counted)
    try:
        yield
    finally:
        set_hook(before)


def _counted(make: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """A bar that transformers makes over something whose length is known, or the one it would have made."""
    items, what = (arguments[0] if arguments else None), named.get("desc")
    if not isinstance(items, Collection) or not what:
        return make(*arguments, **named)
    return Work(what[0].lower() + what[1:], len(items), "part").through(items)


@contextlib.contextmanager
def _stderr_to(stream: typing.TextIO) -> Iterator[None]:
    before = sys.stderr
    sys.stderr = stream
    try:
        yield
    finally:
        sys.stderr = before
