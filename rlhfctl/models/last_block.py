"""Compute the last layer of a Llama-shaped model only at the tokens whose states are read.

    all tokens ─▶ ... ─▶ last layer: attention of all tokens ─▶ output projection and MLP of the chosen ones

PPO reads the states from which response tokens are predicted, and a reward model the last one. What the last layer
would compute for other tokens after its attention, nobody reads. The numbers are the same. Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_CHECKED = "rlhfctl_last_block"  # name of a trunk's attribute: the numbers of the short way have been compared


def has_shape(trunk: Any) -> bool:
    """Tell whether the last layer has the parts of a Llama layer, which this file runs in Llama's order."""
    layers = getattr(trunk, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != getattr(trunk.config, "num_hidden_layers", None):
        return False
    last = layers[-1]
    return {name for name, _ in last.named_children()} == _PARTS and isinstance(
        getattr(last.self_attn, "o_proj", None), nn.Module
    )


def allow(trunk: Any, allowed: bool) -> None:
    """Allow the short way for `trunk`, or end it. Whoever allows it has compared the numbers."""
    vars(trunk)[_CHECKED] = allowed


def is_allowed(trunk: Any) -> bool:
    """Tell whether the short way is allowed and no forward of the last layer has been replaced.

    Gradient checkpointing replaces it, and so do some quantized layers.
    """
    if not vars(trunk).get(_CHECKED, False):
        return False
    last = trunk.layers[-1]
    return not any("forward" in vars(part) for part in (last, last.self_attn, last.self_attn.o_proj))


@contextmanager
def only_at(trunk: Any, tokens: Tensor) -> Iterator[None]:
    """Let the last layer give the states (1, N, H) of `tokens` (N,) out of the (1, T, H) that enter it."""
    layer = trunk.layers[-1]
    output = layer.self_attn.o_proj
    project = output.forward

    def projected(attended: Tensor, *args: Any, **kwargs: Any) -> Any:
        return project(attended.index_select(1, tokens), *args, **kwargs)

    def forward(hidden: Tensor, *args: Any, **inputs: Any) -> Tensor:
        attended: Tensor = layer.self_attn(layer.input_layernorm(hidden), *args, **inputs)[0]
        chosen = hidden.index_select(1, tokens) + attended
        result: Tensor = chosen + layer.mlp(layer.post_attention_layernorm(chosen))
        return result

    vars(output)["forward"], vars(layer)["forward"] = projected, forward
    try:
        yield
    finally:
        del vars(output)["forward"], vars(layer)["forward"]
