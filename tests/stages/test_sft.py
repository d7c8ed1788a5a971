"""The sft stage: which demonstrations are learned, and that what it publishes is what it trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_stage import context, small_model, small_tokenizer

from rlhfctl.artifacts import load_artifact
from rlhfctl.data.encoding import IGNORED
from rlhfctl.errors import DataError
from rlhfctl.models import build, loading, scoring, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stages import sft


def encode(folder: Path, rows: list[dict[str, str]], max_length: int | None, **options: Any) -> Any:
    """What the stage learns from `rows`, its notes, and the trainer's options afterwards."""
    tokenizer = small_tokenizer()
    given = {"completion_only_loss": None, "assistant_only_loss": False, "packing": False, "max_length": max_length}
    config = SimpleNamespace(**given | options)
    ctx = context(folder, "sft", [])
    encoded, _ = sft._encode(rows, tokenizer, config, small_model(tokenizer), ctx)  # type: ignore[arg-type]
    return encoded, ctx.notes, config


def test_demonstrations_beyond_max_length_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "completion": "a"}, {"prompt": "ab", "completion": "ab" * 6}]
    encoded, notes, config = encode(tmp_path, rows, 8)
    assert [len(row["input_ids"]) for row in encoded] == [4, 15]  # TRL cuts them at max_length
    assert encoded[0]["labels"][:2] == [IGNORED, IGNORED] and encoded[0]["labels"][2:] == encoded[0]["input_ids"][2:]
    assert notes == ["warning: 1 of 2 demonstrations are longer than max_length=8 tokens and are cut there"]
    assert config.max_length == 8
    assert encode(tmp_path, rows, 8, packing=True)[1] == []  # packing cuts nothing off


def test_the_models_context_limits_the_length_too(tmp_path: Path) -> None:
    _, notes, config = encode(tmp_path, [{"prompt": "a", "completion": "b" * 40}], None)
    assert config.max_length == 32 and len(notes) == 1 and "1 of 1 demonstrations" in notes[0]


def test_prompts_that_leave_nothing_to_learn_are_dropped_with_a_count_and_all_of_them_are_an_error(
    tmp_path: Path,
) -> None:
    lost, kept = {"prompt": "a" * 9, "completion": "b"}, {"prompt": "a", "completion": "b"}
    _, notes, _ = encode(tmp_path, [lost, kept], 8)
    assert notes[-1] == "warning: 1 of them are left without a single token to learn from and are dropped"
    with pytest.raises(DataError, match="no demonstration has a token to learn from among its first 8") as caught:
        encode(tmp_path, [lost, lost], 8)
    assert caught.value.where == "sft.trainer.max_length"


def test_the_published_model_is_the_trained_one(tiny_run: Path) -> None:
    made = load_artifact(tiny_run / "sft")
    assert set(made.manifest.layout) == {"model", "probes"} and made.manifest.metrics["reload_gap"] < 1e-4
    assert {"mean_token_accuracy", "num_tokens"} <= set(made.manifest.metrics)
    model = loading.load_causal_lm(str(made.part("model")), dtype=torch.float32)
    tokenizer = tokenizing.load_tokenizer(str(made.part("model")))
    recorded = json.loads(made.part("probes").read_text())
    again = scoring.sequence_logprobs(model, recorded["rows"], tokenizer.pad_token_id)
    for row, kept in zip(again, recorded["logprobs"], strict=True):
        assert row == pytest.approx(kept, abs=1e-4)
    init = load_recipe(tiny_run / "recipe.yaml").recipe.model.init
    assert init is not None
    start = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
    moved = [
        name
        for (name, before), after in zip(start.named_parameters(), model.parameters(), strict=True)
        if not torch.equal(before, after)
    ]
    assert len(moved) > len(list(start.parameters())) // 2
