"""Training with TRL's trainers: what is reported, what is left of the trainer, and how a stopped one goes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from rlhfctl.events import Event, Progress, StageStarted
from rlhfctl.models import build, tokenizing
from rlhfctl.recipe.schema import Init, Sft
from rlhfctl.training.trl import options
from rlhfctl.training.trl.train import train

SECTION = Sft(
    checkpoint_steps=2,
    trainer={"per_device_train_batch_size": 2, "max_steps": 6, "logging_steps": 2, "learning_rate": 1e-2},
)
ROWS = [{"input_ids": [3, 4, 5, 0], "labels": [3, 4, 5, 0]}, {"input_ids": [5, 4, 0], "labels": [5, 4, 0]}] * 6


class Stop(TrainerCallback):  # type: ignore[misc]
    """Fails as a killed process does, after some steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def trained(work: Path, *callbacks: TrainerCallback) -> tuple[Any, dict[str, float], list[Event], Any]:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["a", "b", "c", "d"])
    tokenizer = tokenizing.train_tokenizer(init, [])
    model = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
    made: list[Any] = []
    arguments = options.trainer_arguments(work, "float32", SECTION.trainer, seed=0)
    trainer = partial(
        SFTTrainer, args=SFTConfig(**arguments), train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
    )

    def make(**given: Any) -> Any:
        given["callbacks"] += callbacks
        made.append(trainer(**given))
        return made[-1]

    events: list[Event] = []
    model, metrics = train(
        make,
        model,
        SECTION,
        stage="sft",
        work=work,
        emit=events.append,
        warn=pytest.fail,
        counts=lambda trainer: {"rows": len(trainer.train_dataset)},
        metrics=("loss",),
    )
    return model, metrics, events, made[0]


def test_a_trained_model_comes_back_alone_with_its_metrics(tmp_path: Path) -> None:
    model, metrics, events, trainer = trained(tmp_path / "work")
    assert set(metrics) == {"loss", "steps"} and metrics["steps"] == 6
    assert trainer.optimizer is None and trainer.model is None
    started = next(event for event in events if isinstance(event, StageStarted))
    assert (started.total_steps, started.resumed_from) == (6, None)
    assert started.settings["rows"] == 12
    assert started.settings["parameters"] == sum(weights.numel() for weights in model.parameters())
    assert [event.step for event in events if isinstance(event, Progress)][-1] == 6


def test_a_stopped_one_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    whole, _, _, _ = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "work", Stop())
    resumed, metrics, events, _ = trained(tmp_path / "work")
    started = next(event for event in events if isinstance(event, StageStarted))
    assert started.resumed_from == 4 and metrics["steps"] == 6
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name
