"""Pad rows of token ids into tensors, widen number formats, pack bits, compute entropies: pure functions on tensors.

Reads and writes no files, and holds no state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # how many are worked on at a time: 64 MB in float32


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of ids on the left: (ids, attention mask), both (B, L)."""
    return _pad(rows, pad, device, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of ids on the right: (ids, attention mask), both (B, L)."""
    return _pad(rows, pad, device, left=False)


def _pad(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, columns] = torch.tensor(row, dtype=torch.long)
        mask[index, columns] = 1
    return ids.to(device), mask.to(device)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Convert 16-bit numbers to float32; leave wider ones unchanged."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy in nats of each distribution over the vocabulary: logits (..., V) to (...)."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def packed_bits(bits: Tensor) -> Tensor:
    """Pack truth values (..., V) into bytes (..., ceil(V / 8)); value v is bit v % 8 of byte v // 8."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8))
    weights = 2 ** torch.arange(8, device=bits.device)
    return (padded.unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)


def unpacked_bits(packed: Tensor, count: int) -> Tensor:
    """Unpack the first `count` truth values (..., count) of bytes (..., ceil(count / 8)); see packed_bits."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :count].bool()
