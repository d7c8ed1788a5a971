"""What memory a step takes: by hand for a layer, against the tensors that a real step keeps for whole models."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlhfctl.planning import memory, ppo_memory
from rlhfctl.planning import meter as meters
from rlhfctl.planning.memory import BASE, ModelSpec, Training
from rlhfctl.planning.meter import (
    ACTIVATIONS,
    ALLOCATOR,
    CACHE,
    GRADIENTS,
    LOGITS,
    ON_HEAP,
    OPTIMIZER,
    WEIGHTS,
    AllocationMeter,
    on_meta_device,
)
from rlhfctl.recipe.schema import Compare, Lora, Ppo

VOCABULARY, WIDTH, LAYERS = 96, 32, 3


def shape(family: str = "llama", **more: Any) -> ModelSpec:
    size = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    if family == "llama":
        size |= {"intermediate_size": 48, "num_key_value_heads": 4}
    config = AutoConfig.for_model(family, **size, max_position_embeddings=64, tie_word_embeddings=True)
    return ModelSpec(config, **({"dtype": torch.float32} | more))


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


def ppo(reward: ModelSpec | None = None, *, shared: bool = True, **changes: Any) -> memory.MemoryEstimate:
    settings = {"lora": Lora(r=4), "per_device_train_batch_size": 8, "response_length": 24, "eval": {"every": 1}}
    section = Ppo(**(settings | changes))
    return ppo_memory.ppo_outlook(shape(), section, 12, reward or shape(), shared=shared, eval_prompts=4)


def test_roles_of_ppo() -> None:
    shared = ppo().peak.needs
    assert set(shared) == {BASE, "policy", "reward model", "critic"}
    assert shared["critic"][WEIGHTS] == pytest.approx(shared["policy"][WEIGHTS], rel=0.01)
    whole = ppo(lora=None, critic="model", shared=False).peak.needs
    assert set(whole) == {"policy", "reference", "reward model", "critic"}
    assert whole["critic"][OPTIMIZER] == pytest.approx(2 * whole["critic"][WEIGHTS], rel=0.01)
    head = ppo(critic="head").peak.needs
    assert head["critic"][OPTIMIZER] == 8 * WIDTH  # a vector: two numbers a weight
    assert ppo(bf16=True).peak.needs["policy"][GRADIENTS] > 0
    cheaper = ppo(gradient_checkpointing=True).peak.total
    assert cheaper < 0.8 * ppo().peak.total < ppo(per_device_train_batch_size=16).peak.total


def test_a_cache_has_room_for_prompt_and_response() -> None:
    sampling = next(moment for moment in ppo().moments if moment.what == "sampling")
    a_row = 2 * LAYERS * WIDTH * 4 * (12 + 24)  # keys and values of all layers in float32
    assert sampling.needs["policy"][CACHE] == 8 * a_row
    assert sampling.needs["policy"][LOGITS] >= 2 * 8 * VOCABULARY * 4  # the logarithms and the probabilities


def test_compare_holds_two_models_and_then_the_judge() -> None:
    section = Compare(max_new_tokens=16)
    judged = ppo_memory.compare_outlook(shape(), section, 8, 12, shape())
    assert [moment.what for moment in judged.moments] == [
        "checking what was loaded",
        "sampling",
        "comparing distributions",
        "loading the judge",
        "judging",
    ]
    assert len(ppo_memory.compare_outlook(shape(), section, 8, 12, None).moments) == 3
    assert judged.trainable == 0


def test_a_smaller_batch_size_of_compare_is_judged_in_less_memory() -> None:
    def judging(size: int) -> int:
        estimate = ppo_memory.compare_outlook(shape(), Compare(max_new_tokens=16, batch_size=size), 64, 12, shape())
        return next(moment for moment in estimate.moments if moment.what == "judging").total

    small, usual, large = judging(8), judging(64), judging(256)
    assert small < usual < large  # 64 prompts with several responses each: 256 at a time
