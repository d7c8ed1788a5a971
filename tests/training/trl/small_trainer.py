"""An SFTTrainer on a model of one layer, for the tests of callbacks and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from trl import SFTConfig, SFTTrainer

from rlhfctl.models import build, tokenizing
from rlhfctl.recipe.schema import Init
from rlhfctl.training.trl.callback import EventCallback
from rlhfctl.training.trl.options import (
    common_arguments,
    trainer_defaults,
)


def trainer(work: Path, emit: Any, **options: Any) -> SFTTrainer:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["a", "b"])
    tokenizer = tokenizing.train_tokenizer(init, [])
    rows = [{"input_ids": [2, 3, 2, 0], "labels": [2, 3, 2, 0]} for _ in range(8)]
    owned = common_arguments(work, seed=0)
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1} | options
    return SFTTrainer(
        model=build.build_model(init, tokenizer, seed=0, dtype=torch.float32),
        args=SFTConfig(**trainer_defaults("float32", False) | settings | owned),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[EventCallback("sft", emit, work, rename={"loss": "the_loss"})],
    )
