"""Check the options of TRL's trainers, add the options that rlhfctl sets, and name an option that a library refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer

from rlhfctl.errors import Problem, RecipeError
from rlhfctl.models import build, devices
from rlhfctl.recipe.words import describe, did_you_mean
from rlhfctl.training import checkpoints
from rlhfctl.training.trl.callback import KEPT_CHECKPOINTS

# Bounds of options that the trainers do not validate themselves: [minimum, exclusive maximum).
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


def common_arguments(work: Path, *, seed: int) -> dict[str, Any]:
    """Set the options that rlhfctl owns in SFTConfig and RewardConfig: folder, seeds, checkpoints, reporting."""
    return {
        "output_dir": str(work),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_total_limit": KEPT_CHECKPOINTS,
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": devices.device().type == "cuda",
    }


def planned_steps(trainer: Trainer) -> int:
    """Count the optimizer steps of the whole training, as transformers does."""
    args = trainer.args
    return int(args.max_steps) if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch(trainer))


def steps_per_epoch(trainer: Trainer) -> int:
    """Count the optimizer steps of one pass over the rows, as transformers does."""
    return max(1, -(-len(trainer.get_train_dataloader()) // trainer.args.gradient_accumulation_steps))


def prepare(
    trainer: Trainer, work: Path, checkpoint_steps: int | None, warn: Callable[[str], None]
) -> checkpoints.Checkpoint | None:
    """Set how often the trainer saves, remove its printer, and find the checkpoint to resume from.

    Warns if the number format of the weights rounds steps of this learning rate away.
    """
    trainer.remove_callback(PrinterCallback)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    if sentence := build.updates_lost_to_rounding(trained, trainer.args.learning_rate):
        warn(sentence)
    trainer.args.save_steps = checkpoint_steps or checkpoints.interval(planned_steps(trainer))
    resume, passed_over = checkpoints.newest_complete(work)
    for sentence in passed_over:
        warn(sentence)
    return resume


def trainer_arguments(work: Path, dtype: str, given: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Collect all arguments of SFTConfig or RewardConfig: defaults, then the recipe's, then those that rlhfctl owns."""
    on_gpu = devices.device().type == "cuda"
    return trainer_defaults(dtype, on_gpu) | dict(given) | common_arguments(work, seed=seed)


def trainer_defaults(dtype: str, on_gpu: bool) -> dict[str, Any]:
    """Set two defaults that differ from TRL's: bf16 on a GPU only, and gradient checkpointing only when asked for."""
    return {"bf16": on_gpu and dtype != "float16", "gradient_checkpointing": False}


def check_trainers(sections: Mapping[str, Mapping[str, Any]], dtype: str = "float32") -> None:
    """Check the options under every stage's `trainer:` (stage name -> options). RecipeError lists all wrong ones.

    Options that pass one by one are then given to TRL's configuration together, which checks names (for example of
    optimizers) and combinations.
    """
    from trl import DPOConfig, RewardConfig, SFTConfig

    problems: list[Problem] = []
    for name, config in (("sft", SFTConfig), ("reward", RewardConfig), ("dpo", DPOConfig)):
        given = sections.get(name, {})
        try:
            check_trainer_keys(name, given, config)
            if given:
                owned = common_arguments(Path(), seed=0)
                with naming_options(name, given):
                    config(**trainer_defaults(dtype, devices.device().type == "cuda") | dict(given) | owned)
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
    """Turn an exception of TRL or transformers about the options `given` under `trainer:` into a RecipeError.

    Only exceptions before the first step is `done` are converted. If no options are given, the exception is a defect
    and is raised unchanged. The traceback is written to libraries.log.
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
    """Raise RecipeError for keys under `trainer:` that the installed TRL lacks, and for values of the wrong kind."""
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
    """Describe the allowed values if `value` is a number that no training can use; None if it is fine."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return "a finite number"
    lowest, below = _BOUNDS.get(key, (-math.inf, math.inf))
    if value < lowest:
        return f"at least {lowest}"
    return f"below {below}" if value >= below else "greater than 0" if key in _ABOVE_0 and value <= 0 else None


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a YAML value fits the type annotation of a dataclass field; unknown annotations fit."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in _union_parts(hint))
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


def _union_parts(hint: Any) -> list[Any]:
    """List the parts of a union. If it holds an enumeration, `str` is dropped: text must name one of its members."""
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
        return " or ".join(_describe(part) for part in _union_parts(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(repr(member.value) for member in hint)
    return str(hint if parts else getattr(hint, "__name__", hint)).replace("typing.", "")


def effective_settings(args: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the settings as the trainer uses them: the given ones, and the most important others."""
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
