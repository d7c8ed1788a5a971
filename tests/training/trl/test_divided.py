"""TRL's trainers on weights that processes divide: the same steps, plain checkpoints, and a plain model afterwards.

Here one process divides with itself; e2e/test_sharded_run.py has two.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import TaskType
from safetensors.torch import load_file
from test_train import ROWS, SECTION, Stop
from torch import distributed as dist
from torch import nn
from trl import SFTConfig

from rlhfctl.models import adapters, build, sharding, tokenizing
from rlhfctl.recipe.schema import Init, Lora
from rlhfctl.training.trl import options
from rlhfctl.training.trl.divided import divide, reunite
from rlhfctl.training.trl.shared_batches import SharedSftTrainer
from rlhfctl.training.trl.train import train


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(work: Path, *callbacks: Any, divides: bool, lora: bool = False) -> tuple[Any, dict[str, float]]:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["a", "b", "c", "d"])
    tokenizer = tokenizing.train_tokenizer(init, [])
    model: Any = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
    if lora:
        model = adapters.add_lora(model, Lora(r=4, lora_alpha=8), TaskType.CAUSAL_LM, seed=0)
    if divides:
        divide(model)
        assert sharding.is_sharded(model)
    arguments = options.trainer_arguments(work, "float32", SECTION.trainer, seed=0)
    trainer = partial(
        SharedSftTrainer, args=SFTConfig(**arguments), train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
    )
    model, metrics = train(
        lambda **given: trainer(**given | {"callbacks": [*given["callbacks"], *callbacks]}),
        model, SECTION, stage="sft", work=work, emit=lambda event: None, warn=pytest.fail,
        counts=lambda trainer: {}, metrics=("loss", "grad_norm"),
    )  # fmt: skip
    if divides:
        reunite(model)
    return model, metrics


@pytest.mark.ci
@pytest.mark.parametrize("lora", [False, True])
def test_a_trainer_takes_the_same_steps_and_goes_on_from_its_checkpoint(
    lora: bool, group: None, tmp_path: Path
) -> None:
    whole, expected = trained(tmp_path / "whole", divides=False, lora=lora)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "work", Stop(), divides=True, lora=lora)
    name = "adapter_model" if lora else "model"
    saved = load_file(tmp_path / "work" / "checkpoint-4" / f"{name}.safetensors")
    assert {key: value.shape for key, value in saved.items()} == {
        key: value.shape
        for key, value in load_file(tmp_path / "whole" / "checkpoint-4" / f"{name}.safetensors").items()
    }
    model, metrics = trained(tmp_path / "work", divides=True, lora=lora)
    assert metrics == pytest.approx(expected, abs=1e-6) and metrics["grad_norm"] > 0
    assert model.state_dict().keys() == whole.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, atol=1e-6), key
    assert all(type(one) is nn.Parameter for one in model.parameters())
