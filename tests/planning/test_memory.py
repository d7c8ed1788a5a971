"""Memory of a step: computed by hand for one layer, compared with the tensors of a real step for whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_specs import LAYERS, VOCABULARY, WIDTH, shape
from transformers import AutoModelForCausalLM

from rlhfctl.planning import memory
from rlhfctl.planning.memory import BASE, Training
from rlhfctl.planning.meter import (
    GATHERED,
    OPTIMIZER,
    WEIGHTS,
    on_meta_device,
)
from rlhfctl.recipe.schema import Lora


def test_weights_are_counted_once_and_by_their_format() -> None:
    embedding = VOCABULARY * WIDTH  # tied: once
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * 48
    norms = (2 * LAYERS + 1) * WIDTH
    linear, rest = LAYERS * layer, embedding + norms
    with on_meta_device():
        whole, _ = memory.weight_bytes(AutoModelForCausalLM.from_config(shape().config))
        half, _ = memory.weight_bytes(AutoModelForCausalLM.from_config(shape().config, dtype=torch.bfloat16))
        eight, _ = memory.weight_bytes(AutoModelForCausalLM.from_config(shape().config), "8bit")
        four, _ = memory.weight_bytes(AutoModelForCausalLM.from_config(shape().config), "4bit")
    buffers = whole - 4 * (linear + rest)  # angles of the rotary embedding
    assert 0 <= buffers < 200
    assert half == pytest.approx(whole / 2, abs=200)
    assert eight == 4 * rest + linear + buffers
    assert four == pytest.approx(4 * rest + linear * 0.5625 + buffers, abs=2)


def test_adamw_doubles_what_is_trained() -> None:
    training = Training(rows=2, length=16, lora=None)
    whole = memory.sft_outlook(shape(), training, 1, 8).peak.needs["model"]
    assert whole[OPTIMIZER] == pytest.approx(2 * whole[WEIGHTS], rel=0.01)
    adapted = memory.sft_outlook(shape(), Training(2, 16, Lora(r=4)), 1, 8)
    needs = adapted.moments[0].needs
    assert needs["adapter"][OPTIMIZER] == 2 * needs["adapter"][WEIGHTS] == 8 * adapted.trainable
    assert OPTIMIZER not in {kind for kind, size in needs[BASE].items() if size}


def step(**changes: Any) -> int:
    settings: dict[str, Any] = {"rows": 8, "length": 48, "lora": Lora(r=4)} | changes
    return memory.sft_outlook(shape(), Training(**settings), 1, 8).moments[0].total


def test_what_saves_memory_is_seen_to() -> None:
    plain = step()
    assert step(rows=4) < 0.7 * plain
    assert step(length=24) < 0.7 * plain
    assert step(checkpointing=True) < 0.6 * plain
    assert step(autocast=True) < 0.9 * plain
    assert step(whole_logits=True) > plain


def test_processes_that_divide_the_weights_hold_a_part_and_gather_two_layers() -> None:
    layer = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * 48 + 2 * WIDTH)
    outer = 4 * (VOCABULARY * WIDTH + WIDTH)
    gathered = memory.gathered_bytes(shape())
    assert gathered == pytest.approx(outer + 2 * layer, abs=400)  # and the angles of the rotary embedding
    whole = memory.sft_outlook(shape(), Training(2, 16, Lora(r=4)), 1, 8)
    step = whole.moments[0].needs
    on_gpu = memory.divided(whole, 4, whole={"adapter"}, gathered=gathered, loads_here=False)
    assert [moment.what for moment in on_gpu.moments] == ["a training step"]
    (needs,) = (moment.needs for moment in on_gpu.moments)
    assert needs["adapter"] == step["adapter"] and needs[BASE][GATHERED] == gathered
    assert needs[BASE][WEIGHTS] == -(-step[BASE][WEIGHTS] // 4)
    trained = memory.sft_outlook(shape(), Training(2, 16, None), 1, 8)
    on_cpu = memory.divided(trained, 2, whole={"adapter"}, gathered=gathered, loads_here=True)
    assert [moment.what for moment in on_cpu.moments] == [*(one.what for one in trained.moments), "loading and saving"]
    assert on_cpu.moments[0].needs["model"][OPTIMIZER] == trained.moments[0].needs["model"][OPTIMIZER] // 2
    assert on_cpu.moments[-1].needs["model"] == {WEIGHTS: trained.moments[0].needs["model"][WEIGHTS]}


def test_dpo_without_lora_holds_a_second_model_and_with_it_none() -> None:
    whole = memory.dpo_outlook(shape(), Training(rows=4, length=16, lora=None), 2, 8)
    needs = whole.peak.needs
    assert needs.keys() == {"policy", "reference"} and needs["reference"][WEIGHTS] == needs["policy"][WEIGHTS]
    assert needs["policy"][OPTIMIZER] == pytest.approx(2 * needs["policy"][WEIGHTS], rel=0.01)
    adapted = memory.dpo_outlook(shape(), Training(rows=4, length=16, lora=Lora(r=4)), 2, 8)
    assert adapted.peak.needs.keys() == {BASE, "adapter"} and adapted.peak.total < whole.peak.total
    assert adapted.trainable == memory.sft_outlook(shape(), Training(4, 16, Lora(r=4)), 1, 8).trainable


def test_dpo_holds_the_logits_of_policy_and_reference_at_once() -> None:
    """Two rows of 64 tokens: logits of both models, and their float32 copies in the backward pass."""
    one = 2 * 64 * VOCABULARY * 4
    found = memory.dpo_outlook(shape(), Training(rows=2, length=64, lora=Lora(r=4)), 1, 8)
    step = next(moment for moment in found.moments if moment.what == "a training step")
    assert 2 * one * 63 / 64 <= step.needs["adapter"]["logits"] <= 7 * one
