"""Compute LoRA layers and RMSNorm in fewer passes over memory, with the same results.

    LoRA linear    y = W x + (alpha / r) B (A x): the product with B is added directly to W x; in the backward pass the
                   product with A is added directly to W' g. peft multiplies, scales and adds in separate passes.
    RMSNorm        y = w x / sqrt(mean(x^2) + eps) with its gradient written out: about half the passes.

In narrow layers these passes cost as much as the matrix products. Only plain layers in one number format are fused:
linear layers with one plain adapter, and frozen float32 norms. All other layers stay unchanged. The weights are not
moved or copied. Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

# ---------------------------------------------------------------- LoRA


class FusedLinear(Linear):
    """Replace peft's LoRA linear layer by one with a fused sum. Both have the same state, so classes can be swapped."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.disable_adapters or not has_one_plain_adapter(self, x):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        flat = x.reshape(-1, x.shape[-1])
        base, name = self.base_layer, self.active_adapters[0]
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        out = _LoraProduct.apply(flat, base.weight, base.bias, down, up, self.scaling[name])
        return out.view(*x.shape[:-1], out.shape[-1])


def has_one_plain_adapter(layer: Linear, x: Tensor | None = None) -> bool:
    """Check whether one plain adapter is active on a frozen layer, and weights (and `x`) have the same dtype."""
    active, base = layer.active_adapters, layer.base_layer
    if layer.merged or len(active) != 1 or active[0] not in layer.lora_A or active[0] in layer.lora_variant:
        return False
    if layer.fan_in_fan_out or type(base) is not nn.Linear or layer.lora_bias.get(active[0]):
        return False
    down, up = layer.lora_A[active[0]].weight, layer.lora_B[active[0]].weight
    inputs = base.weight if x is None else x
    return (
        inputs.dtype == base.weight.dtype == down.dtype == up.dtype
        and not base.weight.requires_grad
        and not torch.is_autocast_enabled(inputs.device.type)
    )


class _LoraProduct(torch.autograd.Function):
    """Compute the LoRA product: (N, in), (out, in), (out,) or None, (r, in), (out, r), scale -> (N, out).

    The base weights get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        inner = x @ down.t()
        out = nn.functional.linear(x, weight, bias)
        out.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(x, inner, weight, down, up)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, inner, weight, down, up = ctx.saved_tensors
        grad_x = grad_down = grad_up = None
        grad_inner = (gradient @ up).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ weight
            grad_x.addmm_(grad_inner, down)
        if ctx.needs_input_grad[3]:
            grad_down = grad_inner.t() @ x
        if ctx.needs_input_grad[4]:
            grad_up = (inner.t() @ gradient).mul_(ctx.scale).t()  # (r, N) @ (N, out) is faster than its transpose
        return grad_x, None, None, grad_down, grad_up, None


# ---------------------------------------------------------------- RMSNorm


class _RmsNorm(torch.autograd.Function):
    """Compute RMSNorm: (..., H), (H,), eps -> (..., H). The weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(norm * norm / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, inverse)
        return x * inverse * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # With s = 1 / sqrt(mean(x^2) + eps): dy_i / dx_j = w_i s (delta_ij - s^2 x_i x_j / H).
        x, weight, inverse = ctx.saved_tensors
        weighted = gradient * weight
        along = torch.linalg.vecdot(weighted, x)[..., None]
        return weighted.mul_(inverse).addcmul_(x, along * inverse.pow(3), value=-1.0 / x.shape[-1]), None, None


def _fused_norm(self: Any, x: Tensor) -> Tensor:
    if x.dtype != torch.float32 or self.weight.dtype != torch.float32 or self.weight.requires_grad:
        result: Tensor = type(self).forward(self, x)
        return result
    normed: Tensor = _RmsNorm.apply(x, self.weight, self.variance_epsilon)
    return normed


def _is_rms_norm(module: nn.Module, *, try_numbers: bool) -> bool:
    """Check whether a module computes RMSNorm: by its name and parts and, if `try_numbers`, by its output."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    named = type(module).__name__.endswith("RMSNorm") and "forward" not in vars(module)
    if not (named and isinstance(weight, Tensor) and weight.dim() == 1 and isinstance(eps, float)):
        return False
    if weight.dtype != torch.float32 or len(list(module.parameters())) != 1:
        return False
    if not try_numbers:
        return True
    x = torch.linspace(-2.0, 3.0, 2 * len(weight), device=weight.device).view(2, -1)
    with torch.no_grad():
        return torch.allclose(module(x), _RmsNorm.apply(x, weight, eps), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- both


@contextmanager
def fused(model: nn.Module, *, try_numbers: bool = True) -> Iterator[int]:
    """Use the fused layers of this file in `model` inside the block. Yields how many layers are fused.

    `try_numbers`: compare each norm's output with the fused one first. Meta tensors hold no numbers and need False.
    """
    linears = [module for module in model.modules() if _is_plain(module)]
    norms = [module for module in model.modules() if _is_rms_norm(module, try_numbers=try_numbers)]
    for linear in linears:
        linear.__class__ = FusedLinear
    for norm in norms:
        vars(norm)["forward"] = MethodType(_fused_norm, norm)
    try:
        yield len(linears) + len(norms)
    finally:
        for linear in linears:
            linear.__class__ = Linear
        for norm in norms:
            del vars(norm)["forward"]


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Use the layers' own forwards again inside the block: those of this file have no forward-mode derivatives."""
    linears = [module for module in model.modules() if type(module) is FusedLinear]
    norms = [
        module for module in model.modules() if getattr(vars(module).get("forward"), "__func__", None) is _fused_norm
    ]
    forwards = [vars(norm).pop("forward") for norm in norms]
    for linear in linears:
        linear.__class__ = Linear
    try:
        yield
    finally:
        for linear in linears:
            linear.__class__ = FusedLinear
        for norm, forward in zip(norms, forwards, strict=True):
            vars(norm)["forward"] = forward


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and not module.fan_in_fan_out
        and all(type(dropout) is nn.Identity for dropout in module.lora_dropout.values())
        and not any(bias for bias in getattr(module, "lora_bias", {}).values())
    )
