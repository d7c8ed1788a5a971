"""Count the cost of a PPO update: needed operations, the machine's operations per second, bytes in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from rlhfctl.models import devices
from rlhfctl.models.adapters import POLICY, is_adapter_parameter

# Name of a card (or a part of it) -> operations per second of dense bfloat16 products with float32 sums, from the
# vendors' data sheets (half of the figure "with sparsity"). The first name that the card's name holds is used.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,  # SXM
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Matrices:
    """The numbers of entries in the matrices that each token is multiplied with.

    `trunk`: all blocks. `head`: the output head. `adapter`: one LoRA adapter on the trunk (0: the trunk is trained).
    """

    trunk: int
    head: int
    adapter: int

    @classmethod
    def of(cls, policy: Any) -> Matrices:
        """Count the entries in a model or peft model. Embeddings are not counted: they are looked up."""
        inner = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        embedded = {
            id(p) for module in inner.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
        }
        head = inner.get_output_embeddings().weight
        trunk = adapter = 0
        for name, parameter in inner.named_parameters():
            if is_adapter_parameter(name):
                adapter += parameter.numel() if is_adapter_parameter(name, POLICY) else 0
            elif parameter.dim() >= 2 and parameter is not head and id(parameter) not in embedded:
                trunk += parameter.numel()
        return cls(trunk, head.numel(), adapter)


def useful_flops(prompt_tokens: int, response_tokens: int, sizes: Matrices, epochs: int, critic: str) -> int:
    """Count the floating-point operations that one update needs, without padding, with each model on each token once.

    A forward costs 2 operations per matrix entry and token (Kaplan et al. 2020, 2001.08361, section 2.1). A backward
    costs the same for the gradient of the activations, and the same once more for the gradient of trained matrices.
    With all weights trained that is 6 per entry, token and epoch; with LoRA the base has no gradient of its weights:
    4. The output head is needed at response tokens only. The products inside attention, norms and softmaxes are left
    out. Operations that an engine does twice, such as recomputed activations, count once.

        rollout, reference    a forward of the language model, each token once (thanks to the KV cache)
        reward model          a forward of a trunk (an adapter could be merged, so it is not counted)
        critic                a forward of its trunk: `adapter` base and adapter, `model` a whole model, `head` and
                              `reward` no trunk
        PPO epochs            forward and backward of policy and critic, each epoch
    """
    tokens = prompt_tokens + response_tokens
    trunk, adapter = 2 * sizes.trunk * tokens, 2 * sizes.adapter * tokens
    head = 2 * sizes.head * response_tokens
    policy = trunk + adapter + head
    policy_weights = adapter if sizes.adapter else trunk + head
    values = {"adapter": trunk + adapter, "model": trunk, "head": 0, "reward": 0}[critic]
    values_weights = {"adapter": adapter, "model": trunk, "head": 0, "reward": 0}[critic]
    once = policy + (trunk + head) + trunk + values
    return once + epochs * (2 * policy + policy_weights + 2 * values + values_weights)


def peak_flops(card: str) -> float | None:
    """Return the operations per second of dense bfloat16 products of a `card`, by its name; None if it is not known."""
    words = f" {card.replace('-', ' ')} "
    return next((peak for name, peak in PEAK_FLOPS.items() if f" {name} " in words), None)


def model_flop_utilisation(flops: float, seconds: float, card: str) -> float | None:
    """Compute the share of a card's peak that needed operations take; None for a card that is not in PEAK_FLOPS.

    MFU = `flops` / (`seconds` * peak), with `flops` from `useful_flops` (Chowdhery et al. 2022, 2204.02311, appendix B;
    their count adds the products inside attention, which are left out here, so that this MFU is the lower one).
    """
    peak = peak_flops(card)
    return None if peak is None else flops / (seconds * peak)


def matmul_rate(times: int = 20) -> float:
    """Measure operations per second of a float32 matrix product, best of `times`; size 1024, 4096 on an accelerator."""
    device = devices.device()
    size = 1024 if device.type == "cpu" else 4096
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    best = float("inf")
    for _ in range(times):
        devices.wait()
        began = time.perf_counter()
        left @ right
        devices.wait()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    """Count the bytes of all tensors; shared storage counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def weights_bytes(modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of all weights, of the gradients of trained ones, and of the optimizer's state."""
    trained = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    weights = [p for module in modules for p in module.parameters()]
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
    return tensor_bytes(weights) + sum(p.numel() * p.element_size() for p in trained.values()) + tensor_bytes(state)
