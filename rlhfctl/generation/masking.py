"""Restrict sampling to the tokens that a masking policy finds likely, as in NLPO.

At each position the masking policy reads what the policy has written so far. Its likeliest tokens that together reach a
share of its probability are allowed, and so are the tokens that end a response. The policy draws from its own
distribution over the allowed tokens. Source: Ramamurthy et al. 2022 (arXiv 2210.01241), "Is reinforcement learning
(not) for natural language processing", section 4.

The masking policy decodes beside the policy: one more step of a model per token. The allowed tokens are kept one bit
per token of the vocabulary, because learning needs exactly these: a second forward of the masking policy would round
differently at the edge of the set. Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhfctl.generation.generator import Sampling, truncated
from rlhfctl.models.special_tokens import PAD_LOGIT
from rlhfctl.models.tensors import packed_bits


def allowed_tokens(logits: Tensor, top_mask: float, temperature: float | None, always: Tensor) -> Tensor:
    """Compute which tokens (B, V) are allowed, from the masking policy's `logits` (B, V).

    These are its likeliest tokens, at `temperature` (None: 1), whose probabilities reach `top_mask`, and the tokens
    `always`. With 1 every token is allowed.
    """
    if top_mask >= 1.0:
        return torch.ones_like(logits, dtype=torch.bool)
    probabilities = (logits / (temperature or 1.0)).softmax(-1)
    allowed = truncated(probabilities, 0, top_mask) > 0.0
    return allowed.index_fill_(1, always, True)


def draw_allowed(logits: Tensor, allowed: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the policy's log-probabilities (B, V) of all tokens, and those (B, V) among the allowed ones.

    `logits` (B, V): the policy's. The tokens that are not allowed get a log-probability near -10,000 in the second.
    """
    scaled = logits if temperature == 1.0 else logits / temperature
    return scaled.log_softmax(-1), scaled.masked_fill(~allowed, PAD_LOGIT).log_softmax(-1)


class MaskedBatch:
    """A batch that the masking policy decodes beside the policy's; `kept` (B, longest, bytes): the allowed tokens.

    `batch`: the masking policy's, with the interface of local.py's batches.
    """

    def __init__(self, batch: Any, sampling: Sampling, rows: int, vocabulary: int, stop_ids: Tensor) -> None:
        assert sampling.mask is not None
        self.batch, self.stop_ids = batch, stop_ids
        self.top_mask, self.temperature = sampling.mask.top_mask, sampling.temperature
        shape = (rows, sampling.max_new_tokens, -(-vocabulary // 8))
        self.kept = torch.zeros(shape, dtype=torch.uint8, device=stop_ids.device)

    def allowed(self, rows: Tensor, t: int) -> Tensor:
        """Compute the allowed tokens (b, V) of position `t`, and keep them for the episodes `rows` (b,)."""
        found = allowed_tokens(self.batch.logits(), self.top_mask, self.temperature, self.stop_ids)
        self.kept[rows, t] = packed_bits(found)
        return found

    def of(self, counts: Sequence[int]) -> list[bytes]:
        """Return what was kept of each episode's first `counts` positions."""
        table = self.kept.cpu().numpy()
        return [row[:count].tobytes() for row, count in zip(table, counts, strict=True)]
