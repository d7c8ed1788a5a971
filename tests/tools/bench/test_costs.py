"""Operations and bytes of an update, by hand."""

from __future__ import annotations

import torch
from bench_models import small_model
from peft import TaskType

from rlhfctl.models import adapters
from rlhfctl.recipe.schema import Lora
from rlhfctl.tools.bench.costs import (
    Matrices,
    model_flop_utilisation,
    peak_flops,
    tensor_bytes,
    useful_flops,
    weights_bytes,
)


def test_useful_flops_by_hand() -> None:
    """3 prompt and 2 response tokens; 10 numbers in the trunk, 7 in the head, 2 in an adapter; 4 epochs."""
    sizes = Matrices(trunk=10, head=7, adapter=2)
    # a forward: trunk 2 x 10 x 5 = 100, adapter 2 x 2 x 5 = 20, head 2 x 7 x 2 = 28
    once = (100 + 20 + 28) + (100 + 28) + 100  # rollout, reference, reward model
    policy_epoch = 148 + 148 + 20  # forward, activations' gradient, the adapter's gradient
    assert useful_flops(3, 2, sizes, 4, "adapter") == once + 120 + 4 * (policy_epoch + 120 + 120 + 20)
    assert useful_flops(3, 2, sizes, 4, "model") == once + 100 + 4 * (policy_epoch + 3 * 100)
    assert useful_flops(3, 2, sizes, 4, "head") == once + 4 * policy_epoch
    whole = Matrices(trunk=10, head=7, adapter=0)  # no LoRA: the policy's own matrices are trained
    assert useful_flops(3, 2, whole, 1, "model") == 128 + 128 + 100 + 100 + 3 * 128 + 3 * 100


def test_each_card_has_the_peak_of_its_data_sheet() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H100 NVL") == 835e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == peak_flops("NVIDIA A100-PCIE-40GB") == 312e12
    assert (peak_flops("NVIDIA L4"), peak_flops("NVIDIA L40S")) == (121e12, 362e12)
    assert peak_flops("CPU") is None and peak_flops("NVIDIA L400") is None


def test_utilisation_by_hand() -> None:
    """A forward and a backward of a model of 10 trained entries on 5 tokens: 6 x 10 x 5 operations."""
    whole = Matrices(trunk=10, head=0, adapter=0)
    once = 4 * 2 * 10 * 5  # rollout, reference, reward model; values of a critic of its own
    learning = useful_flops(3, 2, whole, 1, "head") - (once - 100)
    assert learning == 6 * 10 * 5
    assert model_flop_utilisation(989e12 * 0.45 * 2, 2.0, "NVIDIA H100 80GB HBM3") == 0.45
    assert model_flop_utilisation(1e12, 2.0, "CPU") is None


def test_matrices_of_a_model() -> None:
    model, _ = small_model()
    trunk = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert Matrices.of(model) == Matrices(trunk, 200 * 32, 0)
    adapted = adapters.add_lora(model, Lora(r=4), TaskType.CAUSAL_LM, seed=0)
    adapter = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))
    assert Matrices.of(adapted) == Matrices(trunk, 200 * 32, adapter)


def test_held_bytes_by_hand() -> None:
    """Shared storage counts once; the optimizer's moments once it has stepped, gradients always."""
    layer = torch.nn.Linear(8, 4, bias=False)
    assert tensor_bytes([layer.weight, layer.weight[:2], torch.zeros(3)]) == 4 * (8 * 4 + 3)
    tied = torch.nn.Linear(8, 4, bias=False)
    tied.weight = layer.weight
    optimizer = torch.optim.AdamW(layer.parameters())
    assert weights_bytes([layer, tied], optimizer) == 2 * 4 * 32
    layer(torch.ones(8)).sum().backward()
    optimizer.step()
    assert weights_bytes([layer, tied], optimizer) == 4 * 4 * 32 + 4  # and one count of steps
