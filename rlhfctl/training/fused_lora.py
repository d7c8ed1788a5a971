"""LoRA layers whose update is added by one multiply-add, where peft multiplies, scales and adds one after the other.

y = W x + (alpha / r) B (A x): the product with B accumulates straight into W x. In peft's own forward the scaling and
the sum are passes over the whole output, in the backward too; where layers are narrow these cost as much as the
products. Only plain linear layers with one plain adapter take part, in one number format; all others stay peft's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class FusedLinear(Linear):
    """peft's LoRA linear layer with the sum fused; the same state, so that its class can be swapped for peft's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = self.active_adapters
        lone = not (self.disable_adapters or self.merged or args or kwargs) and len(active) == 1
        if not lone or torch.is_autocast_enabled(x.device.type):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        name = active[0]
        if name not in self.lora_A or name in self.lora_variant:
            return super().forward(x)
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        if not x.dtype == base.weight.dtype == down.dtype == up.dtype:
            return super().forward(x)
        flat = x.reshape(-1, x.shape[-1])
        out = nn.functional.linear(flat, base.weight, base.bias)
        out.addmm_(flat @ down.t(), up.t(), alpha=self.scaling[name])
        return out.view(*x.shape[:-1], out.shape[-1])


@contextmanager
def fused(model: nn.Module) -> Iterator[int]:
    """Compute `model`'s LoRA layers so while inside. Yields how many take part."""
    swapped = [module for module in model.modules() if _plain(module)]
    for module in swapped:
        module.__class__ = FusedLinear
    try:
        yield len(swapped)
    finally:
        for module in swapped:
            module.__class__ = Linear


def _plain(module: nn.Module) -> bool:
    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and not module.fan_in_fan_out
        and all(type(dropout) is nn.Identity for dropout in module.lora_dropout.values())
        and not any(bias for bias in getattr(module, "lora_bias", {}).values())
    )
