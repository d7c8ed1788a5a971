"""Pad rows of token ids into tensors, widen number formats, compute entropies: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # how many are worked on at a time: 64 MB in float32


def pad_left(rows: Sequence[Sequence[int]], pad: int, at: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both (B, L) with the padding on the left."""
    return _pad(rows, pad, at, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad: int, at: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both (B, L) with the padding on the right."""
    return _pad(rows, pad, at, left=False)


def _pad(rows: Sequence[Sequence[int]], pad: int, at: torch.device, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids.to(at), mask.to(at)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half-width numbers as float32; wider ones as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's distribution: logits (..., V) to (...)."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)
