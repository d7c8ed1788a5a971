"""Options under trainer: wrong ones are named, others filled in, steps and checkpoints follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from small_trainer import trainer
from trl import RewardConfig, SFTConfig

from rlhfctl.errors import RecipeError
from rlhfctl.events import Event
from rlhfctl.recipe.words import describe
from rlhfctl.training.trl.options import (
    check_trainer_keys,
    check_trainers,
    common_arguments,
    effective_settings,
    naming_options,
    planned_steps,
    prepare,
    trainer_defaults,
)


def problems(given: dict[str, Any], config: type[Any] = SFTConfig) -> list[str]:
    try:
        check_trainer_keys("sft", given, config)
    except RecipeError as error:
        return [f"{problem.key}: {problem.what}" for problem in error.problems]
    return []


def test_an_unknown_option_is_answered_with_the_one_meant() -> None:
    assert problems({"lerning_rate": 1e-3}) == [
        "sft.trainer.lerning_rate: SFTConfig has no such option; did you mean 'learning_rate'?"
    ]
    assert problems({"zzzzzz": 1}) == ["sft.trainer.zzzzzz: SFTConfig has no such option"]
    assert problems({"center_rewards_coefficient": 0.1}) and not problems(
        {"center_rewards_coefficient": 0.1}, RewardConfig
    )


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("num_train_epochs", "three"),
        ("num_train_epochs", True),
        ("per_device_train_batch_size", 2.5),
        ("per_device_train_batch_size", True),
        ("packing", 1),
        ("packing", "yes"),
        ("max_length", "long"),
        ("learning_rate", None),
        ("learning_rate", "1e-3"),
    ],
)
def test_values_of_another_kind_are_named(key: str, wrong: object) -> None:
    (found,) = problems({key: wrong})
    assert found.startswith(f"sft.trainer.{key}: expected ") and found.endswith(f"got {describe(wrong)}")


def test_values_that_fit_pass_and_all_faults_come_at_once() -> None:
    fine = {
        "learning_rate": 1, "max_length": None, "packing": True, "lr_scheduler_type": "cosine", "optim": "adamw_torch",
        "lr_scheduler_kwargs": {"num_cycles": 1}, "completion_only_loss": None, "per_device_train_batch_size": 4,
    }  # fmt: skip
    assert problems(fine) == []
    assert len(problems(fine | {"packing": 3, "max_length": "x", "nope": 1})) == 3


@dataclass
class Toy:
    mode: Literal["fast", "slow"] = "fast"
    maybe: Literal[1, 2] | None = None
    names: list[str] = field(default_factory=list)
    anything: Any = None
    hidden: int = field(default=0, init=False)


def test_literals_lists_and_fields_that_are_not_arguments() -> None:
    assert problems({"mode": "slow", "maybe": None, "names": ["a"], "anything": object()}, Toy) == []
    assert len(problems({"mode": "medium"}, Toy)) == len(problems({"maybe": 3}, Toy)) == 1
    assert len(problems({"names": "a"}, Toy)) == len(problems({"names": {"a": 1}}, Toy)) == 1
    assert problems({"hidden": 1}, Toy) == ["sft.trainer.hidden: Toy has no such option"]
    assert problems({"maybe": 3}, Toy) == ["sft.trainer.maybe: expected 1, 2 or null, got the number 3"]
    assert problems({"names": "a"}, Toy) == ["sft.trainer.names: expected list[str], got the string 'a'"]
    assert problems({"mode": "medium"}, Toy) == ["sft.trainer.mode: expected 'fast', 'slow', got the string 'medium'"]


@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [
        ("learning_rate", -1, "must be at least 0, got -1"),
        ("learning_rate", math.nan, "must be a finite number, got nan"),
        ("weight_decay", math.inf, "must be a finite number, got inf"),
        ("gradient_accumulation_steps", 0, "must be at least 1, got 0"),
        ("per_device_train_batch_size", 0, "must be at least 1, got 0"),
        ("num_train_epochs", 0, "must be greater than 0, got 0"),
        ("adam_beta2", 1, "must be below 1, got 1"),
        ("max_length", -5, "must be at least 1, got -5"),
        ("lr_scheduler_type", "linaer", "expected 'linear', "),
        ("optim", "adamm", "expected 'adamw_torch', "),
    ],
)
def test_values_that_no_training_can_use_are_named(key: str, wrong: object, said: str) -> None:
    (found,) = problems({key: wrong})
    assert found.startswith(f"sft.trainer.{key}: {said}")
    assert "or text" not in found


def test_what_trl_refuses_of_options_together_is_the_recipes_fault() -> None:
    with pytest.raises(RecipeError, match=r"sft\.trainer.*: cannot be used: ") as caught:
        check_trainers({"sft": {"bf16": True, "fp16": True}})
    caught.value.place({"sft.trainer": "mine.yaml:7"})
    assert str(caught.value).splitlines()[1].startswith("  - mine.yaml:7: sft.trainer")
    with pytest.raises(ValueError, match="ours"), naming_options("sft", {}):
        raise ValueError("ours")  # no options: nobody's fault but ours
    with pytest.raises(ValueError, match="late"), naming_options("sft", {"optim": "sgd"}, lambda: True):
        raise ValueError("late")


def test_effective_settings_are_the_trainers_own(tmp_path: Path) -> None:
    owned = common_arguments(tmp_path, seed=7)
    given = {"learning_rate": 1e-2, "weight_decay": 0.1}
    defaults = trainer_defaults("float32", on_gpu=False)
    shown = effective_settings(SFTConfig(**defaults | given | owned), given)
    assert shown["learning_rate"] == 1e-2 and shown["weight_decay"] == 0.1
    assert (shown["seed"], shown["bf16"], shown["gradient_checkpointing"]) == (7, False, False)
    assert str(shown["lr_scheduler_type"]) == "linear"
    assert "adam_beta1" not in shown
    assert all(isinstance(value, bool | int | float | str | None) for value in shown.values())


def test_mixed_precision_is_for_a_gpu() -> None:
    cases = [("float32", True, True), ("bfloat16", True, True), ("float16", True, False), ("float32", False, False)]
    for dtype, on_gpu, expected in cases:
        assert trainer_defaults(dtype, on_gpu)["bf16"] is expected


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 3, "num_train_epochs": 9}, 3),
        ({"max_steps": -1, "num_train_epochs": 2}, 4),
        ({"max_steps": -1, "num_train_epochs": 1.5}, 3),
        ({"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 2}, 3),
        (
            {
                "max_steps": -1,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 3,
                "gradient_accumulation_steps": 2,
            },
            4,
        ),
    ],
)
def test_planned_steps_are_those_taken(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    events: list[Event] = []
    ours = trainer(tmp_path, events.append, **options)
    prepare(ours, tmp_path, None, pytest.fail)
    assert planned_steps(ours) == steps
    assert ours.args.save_steps == 1
    ours.args.save_steps = 100
    ours.train()
    assert ours.state.global_step == steps


def test_checkpoints_are_about_ten_a_stage(tmp_path: Path) -> None:
    ours = trainer(tmp_path, lambda event: None, max_steps=95)
    prepare(ours, tmp_path, None, pytest.fail)
    assert ours.args.save_steps == 10
    prepare(ours, tmp_path, 7, pytest.fail)
    assert ours.args.save_steps == 7


def test_a_step_that_the_format_rounds_away_is_a_warning(tmp_path: Path) -> None:
    ours = trainer(tmp_path, lambda event: None, learning_rate=1e-6)
    prepare(ours, tmp_path, None, pytest.fail)
    ours.model.bfloat16()
    warned: list[str] = []
    prepare(ours, tmp_path, None, warned.append)
    assert len(warned) == 1 and "cannot move by a step of learning_rate 1e-06" in warned[0]


def test_an_unmarked_checkpoint_is_passed_over_aloud(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    warned: list[str] = []
    assert prepare(trainer(tmp_path, lambda event: None), tmp_path, None, warned.append) is None
    assert len(warned) == 1 and "checkpoint-3" in warned[0]
