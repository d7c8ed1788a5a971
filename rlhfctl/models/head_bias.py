"""Keep the shift of a reward in its scalar head: set it, and load it from the files of a model or an adapter.

A reward r = w * h + b has its scale in the weight of the head, and its shift b in a bias. transformers' sequence
classifiers have heads without one: they save a bias that a head was given (`score.bias`), but do not load it. The
functions here load it. Everything that calls the head then sees the shifted reward.

Reads safetensors files. Leaves out the choice of scale and shift (stages/normalization.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import Tensor, nn

BIAS = "score.bias"  # its name in a model's files
_IN_ADAPTERS = (".score.bias", ".score.modules_to_save.bias")  # ends of its name in an adapter's file


def head_of(model: Any) -> nn.Linear:
    """Return the scalar head of a reward model; of a peft model the one that is trained and saved."""
    head = (model.get_base_model() if isinstance(model, PeftModel) else model).score
    if isinstance(head, ModulesToSaveWrapper):
        head = head.modules_to_save[head.active_adapter]
    assert isinstance(head, nn.Linear)
    return head


def transform(model: Any, scale: float, shift: float) -> None:
    """Replace each score s of a reward model by scale * s + shift, in its scalar head, in place."""
    head = head_of(model)
    before = head.bias.item() if head.bias is not None else 0.0
    with torch.no_grad():
        head.weight.mul_(scale)
    set_bias(head, torch.tensor([scale * before + shift], dtype=torch.float64))


def set_bias(head: nn.Linear, bias: Tensor) -> None:
    """Give a scalar head the bias (1,), in the number format of its weight."""
    head.bias = nn.Parameter(bias.to(head.weight), requires_grad=head.weight.requires_grad)


def is_bias(name: str) -> bool:
    """Tell whether `name` in an adapter's file is the bias of its scalar head."""
    return name.endswith(_IN_ADAPTERS)


def bias_of_adapter(folder: Path) -> Tensor | None:
    """Read the bias (1,) of the scalar head in an adapter's folder; None without one."""
    return _read(folder / "adapter_model.safetensors", _IN_ADAPTERS)


def bias_of_model(folder: Path) -> Tensor | None:
    """Read the bias (1,) of the scalar head in a model's folder, which may have its weights in several files."""
    found = (_read(file, (BIAS,)) for file in sorted(folder.glob("*.safetensors")))
    return next((bias for bias in found if bias is not None), None)


def prepare_for_adapter(model: Any, folder: Path) -> None:
    """Give the head of `model` a bias if the adapter of `folder` holds one: peft then loads it with the head."""
    bias = bias_of_adapter(folder)
    if bias is not None and isinstance(head := getattr(model, "score", None), nn.Linear):
        set_bias(head, torch.zeros_like(bias))


def _read(file: Path, ends: tuple[str, ...]) -> Tensor | None:
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as weights:
        name = next((name for name in weights.keys() if name.endswith(ends)), None)  # noqa: SIM118
        bias: Tensor | None = None if name is None else weights.get_tensor(name)
    return bias if bias is not None and bias.shape == (1,) else None
