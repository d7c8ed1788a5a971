"""The meter of allocations: a layer by hand, and models against what a real forward keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from small_specs import VOCABULARY, shape
from torch import nn
from transformers import AutoModelForCausalLM

from rlhfctl.planning import meter as meters
from rlhfctl.planning.meter import (
    ACTIVATIONS,
    ALLOCATOR,
    GRADIENTS,
    ON_HEAP,
    AllocationMeter,
    on_meta_device,
)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors alone."""
    monkeypatch.setattr(meters, "HEAP_WASTE", 0.0)


@pytest.mark.usefixtures("exact")
def test_a_linear_layer_by_hand() -> None:
    with on_meta_device():
        layer = nn.Linear(10, 20)
        meter = AllocationMeter(vocabulary=VOCABULARY)
        meter.ignore_weights(layer)
        with meter:
            x = torch.zeros(5, 10)
            loss = layer(x).relu().sum()  # kept: x, what relu gave, the sum; gone: what the layer gave
            assert meter.live.total() == 4 * (50 + 100 + 1)
            assert meter.peak.total() == 4 * (50 + 100 + 100)
            loss.backward()
            assert meter.live[GRADIENTS] == 4 * (200 + 20)
            del x
            assert meter.live == Counter({GRADIENTS: 880, ACTIVATIONS: 4, ALLOCATOR: 0})
        with meter:
            meter.restart()
            layer(torch.zeros(1, 10))
            assert meter.peak.total() == 884 + 4 * (10 + 20)


def test_questions_of_numbers_are_answered() -> None:
    with on_meta_device(), AllocationMeter(VOCABULARY):
        mask = torch.ones(3)
        assert not bool((mask == 0).any()) and int(mask.sum()) == 0


def kept_by(model: Any, ids: torch.Tensor) -> int:
    """Bytes of all storages that a real forward keeps for its backward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(kept.values())


def test_small_blocks_are_wasteful_where_the_heap_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_glibc_heap", lambda: True)
    with on_meta_device(), AllocationMeter(VOCABULARY) as meter:
        small = torch.zeros(1000)
        assert meter.live[ALLOCATOR] == 3600
        large = torch.zeros(ON_HEAP // 4)
        assert meter.live[ALLOCATOR] == 3600 and meter.live[ACTIVATIONS] == small.nbytes + large.nbytes
        del small
        assert meter.live[ALLOCATOR] == 0
    monkeypatch.setattr(meters, "_glibc_heap", lambda: False)
    with on_meta_device(), AllocationMeter(VOCABULARY) as meter:
        kept = torch.zeros(1000)
        assert meter.live.total() == kept.nbytes


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_activations_are_those_that_a_real_forward_keeps(family: str) -> None:
    there = shape(family)
    real = AutoModelForCausalLM.from_config(there.config)
    ids = torch.randint(0, VOCABULARY, (4, 24))
    expected = kept_by(real.train(), ids)
    with on_meta_device():
        model = AutoModelForCausalLM.from_config(there.config).train()
        meter = AllocationMeter(VOCABULARY)
        meter.ignore_weights(model)
        with meter:
            ids = torch.zeros((4, 24), dtype=torch.long)
            out = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            assert out.last_hidden_state.requires_grad
        live = meter.live.total()
    assert live == pytest.approx(expected, rel=0.1)
