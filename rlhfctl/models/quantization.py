"""Hold linear layers in 8 or 4 bits through bitsandbytes, with products that are the same on every processor.

Imports bitsandbytes only if `model.quantization` is set. Reads and writes no files. Leaves out loading weights
(loading.py) and merging adapters (merging.py).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from rlhfctl.errors import RlhfctlError

_ROWS = 3  # rows of the matrix in the tested product
_LARGEST_GAP = {"4bit": 1e-2, "8bit": 0.1}  # relative difference from the product in full precision
_LARGEST_WIDTH = 512  # holds whole quantization blocks, as wider layers do
_FIX = "take model.quantization out, use the other number of bits, or install another bitsandbytes"


def load_options(quantization: str | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the arguments of from_pretrained for 8 or 4 bits (NF4, Dettmers et al. 2023); heads keep full precision.

    Raises RlhfctlError if bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    _require()
    four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "8bit"
        else BitsAndBytesConfig(load_in_4bit=True, **four_bits)
    )
    return {"quantization_config": config, "device_map": {"": device}}


def use_portable_products(model: nn.Module) -> None:
    """Turn off the 4-bit kernel for processors with AVX512-BF16, in place.

    That kernel rounds states to bfloat16, changes the layout of the weights in eval mode, and fails on layers narrower
    than 64. Without it the numbers are the same on every processor.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def try_product(quantization: str, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compare a quantized layer (width, width), and its gradient, with the same weights in full precision.

    A wider layer than 512 is tested at 512. Raises RlhfctlError if the product fails or differs by more than rounding.
    """
    _require()
    width = min(width, _LARGEST_WIDTH)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((width, width), generator=generator) / width**0.5
    states = torch.randn((_ROWS, width), generator=generator).to(device, dtype)
    try:
        layer, full_precision = _layer(quantization, weight.to(device), dtype)
        expected = states.float() @ full_precision.float().T
        with torch.no_grad():
            gap = _gap(layer.eval()(states), expected)
        inputs = states.clone().requires_grad_()
        layer.train()(inputs).float().sum().backward()
        assert inputs.grad is not None
        gap = max(gap, _gap(inputs.grad, full_precision.float().sum(0).expand_as(inputs)))
    except Exception as error:  # a library's kernel may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RlhfctlError(
            f"{quantization} products of width {width} fail on this machine: {first}",
            where="model.quantization",
            fix=_FIX,
        ) from error
    allowed = max(_LARGEST_GAP[quantization], 16 * torch.finfo(dtype).eps)
    if not gap <= allowed:
        raise RlhfctlError(
            f"{quantization} products of width {width} are wrong on this machine: off by {gap:.2g} of their size",
            where="model.quantization",
            fix=_FIX,
        )


def _layer(quantization: str, weight: torch.Tensor, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """Make a quantized layer; return it and its weights in full precision."""
    import bitsandbytes  # only if a recipe sets model.quantization

    width = len(weight)
    if quantization == "4bit":
        layer = bitsandbytes.nn.Linear4bit(width, width, bias=False, compute_dtype=dtype, quant_type="nf4")
    else:
        layer = bitsandbytes.nn.Linear8bitLt(width, width, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict({"weight": weight.to(dtype)})
    layer = layer.to(weight.device)
    use_portable_products(layer)
    if quantization == "8bit":
        return layer, weight
    return layer, bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _gap(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute the largest difference from `expected`, relative to the root mean square of `expected`."""
    return float((result.detach().float() - expected).abs().max() / expected.square().mean().sqrt())


def _require() -> None:
    if find_spec("bitsandbytes") is None:
        raise RlhfctlError(
            "bitsandbytes is not installed", where="model.quantization", fix="pip install 'rlhfctl[quantization]'"
        )
